//! A container's process: what it sees, and who it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, bail};
use rustix::mount::{MountFlags, mount};
use rustix::thread::UnshareFlags;
use serde_json::Value;
use weft::local::cluster::expand;
use weft::local::namespaces::{Carry, bind, cover_run, make_private, unshare};

use super::network::PodNetwork;
use crate::kube::clock::{self, Clock};

/// Where the programs of all images are in every container, and first in its `PATH`.
const PROGRAMS: &str = "/run/node/bin";
/// Where the clock of a pod is whose clock is wrong.
const CLOCK: &str = "/run/node/clock";
/// The user of Weft's image (Dockerfile), of which everything is that does not say who it is.
const USER: u64 = 65532;

/// What stands for the images.
#[derive(Clone, Debug)]
pub struct Programs {
    /// For Weft's image, whose entrypoint it is.
    pub weft: PathBuf,
    /// For Envoy's.
    pub envoy: PathBuf,
}

/// What all processes of a pod share.
pub(super) struct Surroundings {
    pub(super) network: PodNetwork,
    pub(super) programs: Programs,
    /// Files that are seen in `/etc`: `resolv.conf` and the like.
    pub(super) etc: BTreeMap<&'static str, String>,
    /// Where its volumes are, by name.
    pub(super) volumes: PathBuf,
    /// What the container's variables may refer to.
    pub(super) fields: BTreeMap<String, String>,
    /// The variables that every container has.
    pub(super) environment: BTreeMap<String, String>,
    /// What processes that start from then on take for the time.
    pub(super) clock: OnceLock<Clock>,
}

/// The command of a container.
pub(super) fn command(container: &Value) -> Vec<String> {
    let words = |field: &str| -> Vec<String> {
        container[field].as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    };
    let mut command = words("command");
    if command.is_empty() {
        command.push("weft".to_owned());
    }
    command.extend(words("args"));
    command
}

/// Starts a process of a container; its command and what its variables are not known yet.
pub(super) fn start(
    surroundings: &Surroundings,
    pod: &Value,
    container: &Value,
    argv: &[String],
    stdio: [Stdio; 3],
) -> anyhow::Result<Child> {
    let environment = environment(surroundings, container)?;
    let argv: Vec<_> = argv.iter().map(|word| expand(word, &environment)).collect();
    let mounts = mounts(surroundings, container)?;
    let identity = identity(pod, container);
    surroundings.network.inside(move || {
        unshare(UnshareFlags::NEWNS)?;
        show(surroundings, &mounts)?;
        let [stdin, stdout, stderr] = stdio;
        let mut command = Command::new("setpriv");
        command.args(identity).arg("--").args(&argv).current_dir("/").env_clear().envs(&environment);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        command.spawn().with_context(|| format!("{argv:?}"))
    })
}

/// Makes the view of files of a container for this thread, and for what it starts: an `/etc` and a `/run` of its own. The
/// rest is this machine's, which stands for the root file systems of images.
fn show(surroundings: &Surroundings, mounts: &[(PathBuf, PathBuf)]) -> anyhow::Result<()> {
    make_private()?;
    let programs = [("weft", &surroundings.programs.weft), ("envoy", &surroundings.programs.envoy)];
    let programs = programs.map(|(name, from)| Carry { from: from.clone(), to: Path::new(PROGRAMS).join(name) });
    let (below_run, below_etc): (Vec<_>, Vec<_>) = mounts.iter().partition(|(_, to)| to.starts_with("/run"));
    let volumes = below_run.into_iter().map(|(from, to)| Carry { from: from.clone(), to: to.clone() });
    let clock = surroundings.clock.get().map(|clock| Carry { from: clock.directory().to_owned(), to: CLOCK.into() });
    cover_run(&programs.into_iter().chain(volumes).chain(clock).collect::<Vec<_>>())?;
    for part in ["upper", "work"] {
        fs::create_dir_all(format!("/run/node/etc/{part}"))?;
    }
    for (name, text) in &surroundings.etc {
        fs::write(format!("/run/node/etc/upper/{name}"), text)?;
    }
    let layers = c"lowerdir=/etc,upperdir=/run/node/etc/upper,workdir=/run/node/etc/work";
    mount("overlay", "/etc", "overlay", MountFlags::empty(), Some(layers)).context("cannot lay files over /etc")?;
    for (from, to) in below_etc {
        fs::create_dir_all(to)?;
        bind(from, to)?;
    }
    Ok(())
}

/// From where to where its volumes are mounted.
fn mounts(surroundings: &Surroundings, container: &Value) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut mounts = Vec::new();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let (Some(name), Some(path)) = (mount["name"].as_str(), mount["mountPath"].as_str()) else { continue };
        let to = match path.strip_prefix("/var/run/") {
            Some(rest) => Path::new("/run").join(rest),
            None => PathBuf::from(path),
        };
        if !to.starts_with("/run") && !to.starts_with("/etc") {
            bail!("volume {name} is mounted at {path}, and this node has nothing but /run and /etc");
        }
        mounts.push((surroundings.volumes.join(name), to));
    }
    Ok(mounts)
}

/// The arguments of setpriv: the user, and no capability but those that are added.
fn identity(pod: &Value, container: &Value) -> Vec<String> {
    let of = |field: &str| {
        let asked = [&container["securityContext"][field], &pod["spec"]["securityContext"][field]];
        asked.into_iter().find_map(Value::as_u64).unwrap_or(USER)
    };
    let added = container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
    let capabilities: String =
        added.filter_map(Value::as_str).map(|name| format!(",+{}", name.to_lowercase())).collect();
    vec![
        format!("--reuid={}", of("runAsUser")),
        format!("--regid={}", of("runAsGroup")),
        "--clear-groups".to_owned(),
        "--no-new-privs".to_owned(),
        "--inh-caps=-all".to_owned(),
        format!("--bounding-set=-all{capabilities}"),
    ]
}

fn environment(surroundings: &Surroundings, container: &Value) -> anyhow::Result<BTreeMap<String, String>> {
    let mut environment = surroundings.environment.clone();
    environment.insert("PATH".to_owned(), format!("{PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin"));
    environment.extend(surroundings.clock.get().iter().flat_map(|_| clock::environment(Path::new(CLOCK))));
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().context("a variable without a name")?;
        let value = match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
            (Some(value), _) => expand(value, &environment),
            (None, Some(path)) => field(surroundings, path),
            (None, None) if variable.get("valueFrom").is_none() => String::new(),
            _ => bail!("the variable {name} comes from what this node does not know"),
        };
        environment.insert(name.to_owned(), value);
    }
    Ok(environment)
}

/// A field of the pod; a label or an annotation that it has not is empty.
fn field(surroundings: &Surroundings, path: &str) -> String {
    surroundings.fields.get(path).cloned().unwrap_or_default()
}
