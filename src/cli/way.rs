//! How a command finds the control plane: the options that all such commands have.

use anyhow::bail;

use super::api_server::ApiServer;
use super::cluster::InCluster;
use super::proxy::reach::{Direct, Reach};

/// The name of a playground that was given none.
const PLAYGROUND: &str = "default";

/// Where the control plane is: in a playground on this machine, at an address, or in a cluster. When nothing is said, it
/// is the playground `default` if it runs, else the cluster that kubectl would ask.
#[derive(clap::Args, Debug)]
pub struct Way {
    /// The playground's name [default: default]
    #[arg(long, global = true, env = "WEFT_PLAYGROUND")]
    name: Option<String>,
    /// The control plane's inspection API, when it is reachable from here
    #[arg(long, global = true, value_name = "HOST:PORT")]
    server: Option<String>,
    #[command(flatten)]
    cluster: ApiServer,
    /// The namespace of the control plane in the cluster
    #[arg(long, global = true, value_name = "NAME", default_value = "weft-system")]
    weft_namespace: String,
}

impl Way {
    /// The way that the options tell. `playground` opens the one to the playground of a name on this machine.
    ///
    /// # Errors
    /// When there is no such playground, and no cluster.
    pub fn open(
        &self,
        playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>,
    ) -> anyhow::Result<Box<dyn Reach>> {
        self.open_with(None, playground)
    }

    /// As [`Way::open`], where a proxy's admin interface may be reachable from here.
    pub(super) fn open_with(
        &self,
        admin: Option<String>,
        playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>,
    ) -> anyhow::Result<Box<dyn Reach>> {
        if self.server.is_some() || admin.is_some() {
            return Ok(Box::new(Direct { server: self.server.clone(), admin }));
        }
        let cluster = || InCluster::open(&self.cluster, &self.weft_namespace);
        match &self.name {
            _ if self.cluster.is_chosen() => Ok(Box::new(cluster()?)),
            Some(name) => playground(name),
            None => match playground(PLAYGROUND) {
                Ok(playground) => Ok(playground),
                Err(none) => match cluster() {
                    Ok(cluster) => Ok(Box::new(cluster)),
                    Err(error) => bail!("{none:#}; and there is no cluster to ask: {error:#}"),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        way: Way,
        #[command(subcommand)]
        command: Option<Command>,
    }

    #[derive(clap::Subcommand)]
    enum Command {
        Status,
    }

    /// The playground that is asked for, and whether there is a way; none runs.
    fn open(words: &str) -> (Option<String>, bool) {
        let way = Cli::try_parse_from(words.split(' ')).unwrap().way;
        let mut asked = None;
        let opened = way.open(|name| {
            asked = Some(name.to_owned());
            bail!("no such playground")
        });
        (asked, opened.is_ok())
    }

    #[test]
    fn a_cluster_that_is_named_needs_no_playground_and_without_a_word_one_is_looked_for_first() {
        assert_eq!(open("weft status --kubeconfig /there/is/none"), (None, false));
        assert_eq!(open("weft --context nobodys status").0, None);
        assert_eq!(open("weft status").0.as_deref(), Some("default"));
    }

    #[test]
    fn a_name_counts_before_and_behind_the_subcommand_and_a_server_needs_none() {
        for (words, expected) in [
            ("weft --name second status", Some("second")),
            ("weft status --name second", Some("second")),
            ("weft status --name second --server 127.0.0.1:1", None),
        ] {
            let (asked, opened) = open(words);
            assert_eq!((asked.as_deref(), opened), (expected, expected.is_none()), "{words}");
        }
    }
}
