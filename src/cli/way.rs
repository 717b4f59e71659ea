//! How a command finds the control plane: the options that all such commands have.

use super::proxy::reach::{Direct, Reach};

/// Where the control plane is.
#[derive(clap::Args, Debug)]
pub struct Way {
    /// The playground's name
    #[arg(long, global = true, env = "WEFT_PLAYGROUND", default_value = "default")]
    name: String,
    /// The control plane's inspection API, when it is reachable from here
    #[arg(long, global = true, value_name = "HOST:PORT")]
    server: Option<String>,
}

impl Way {
    /// The way that the options tell. `playground` opens the one to the playground of a name on this machine.
    ///
    /// # Errors
    /// When there is no such playground.
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
        match (&self.server, &admin) {
            (None, None) => playground(&self.name),
            _ => Ok(Box::new(Direct { server: self.server.clone(), admin })),
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

    #[test]
    fn a_name_counts_before_and_behind_the_subcommand_and_a_server_needs_none() {
        for (words, expected) in [
            ("weft --name second status", Some("second")),
            ("weft status --name second", Some("second")),
            ("weft status --name second --server 127.0.0.1:1", None),
        ] {
            let way = Cli::try_parse_from(words.split(' ')).unwrap().way;
            let mut asked = None;
            let opened = way.open(|name| {
                asked = Some(name.to_owned());
                anyhow::bail!("no such playground")
            });
            assert_eq!((asked.as_deref(), opened.is_err()), (expected, expected.is_some()), "{words}");
        }
    }
}
