//! The playground without root: the same mesh, in a user namespace.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use weft_e2e::mesh::{PATIENCE, repository};
use weft_e2e::until;

use crate::{stock_envoy, weft};

/// `weft ARGUMENTS` as a user who is not root.
fn as_user(arguments: &[&str]) -> Command {
    // Of root, make a user; a user is one already.
    let user: &[&str] = match std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)) {
        Ok(0) => &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
        _ => &["env"],
    };
    let mut command = Command::new(user[0]);
    command.args(&user[1..]).arg(weft()).args(arguments);
    command
}

#[test]
fn the_mesh_works_without_root() {
    const NAME: &str = "rootless-mesh";
    let directory = repository().join("e2e/scenarios/protocols");
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut up = as_user(&["up", "--name", NAME, "--envoy"])
        .args([stock_envoy("default"), directory])
        .stderr(log.reopen().expect("a file"))
        .stdout(Stdio::null())
        .spawn()
        .expect("setpriv of util-linux");
    let call = |arguments: &[&str]| {
        let call = [&["exec", "--name", NAME, "-n", "app", "client", "--", "weft", "app", "call"], arguments].concat();
        as_user(&call).output().expect("ran")
    };
    let answered = until("a call from pod to pod", PATIENCE, || {
        let ended = up.try_wait()?;
        anyhow::ensure!(ended.is_none(), "weft up ended: {}", std::fs::read_to_string(log.path())?);
        let done = call(&["http://several/"]);
        std::thread::sleep(Duration::from_millis(100));
        Ok(match done.status.success() {
            true => Ok(done.stdout),
            false => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
        })
    });
    let tcp = call(&["tcp://several:7000"]);
    // SIGKILL, as it may come to a user's process: the kernel ends the rest.
    up.kill().expect("killed");
    up.wait().expect("ended");
    let answered =
        answered.unwrap_or_else(|error| panic!("{error}\n{}", std::fs::read_to_string(log.path()).expect("a log")));
    let answer: Value = serde_json::from_slice(&answered).expect("JSON");
    let certificate = answer["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
    assert_eq!(answer["name"], "server", "{answer}");
    assert!(certificate.contains("By=spiffe://cluster.local/ns/app/sa/server"), "{certificate}");
    assert!(certificate.contains("URI=spiffe://cluster.local/ns/app/sa/client"), "{certificate}");
    let said = String::from_utf8_lossy(&tcp.stdout);
    assert!(tcp.status.success() && said.starts_with("server v1"), "{said}");
}
