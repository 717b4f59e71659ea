use std::fs;
use std::os::unix::fs::PermissionsExt;

use x509_parser::pem::Pem;

use super::*;
use crate::ca::describe::{describe, describe_all};
use crate::ca::test_clock::{epoch, fixed};
use crate::mesh::ServiceAccountKey;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority() -> Authority {
    Authority::in_memory(TrustDomain::default(), fixed(epoch())).unwrap()
}

fn load(dir: &Path) -> Result<Authority, CaError> {
    Authority::load_or_create(dir, TrustDomain::default(), fixed(epoch()))
}

fn cart() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

#[test]
fn a_leaf_is_an_x509_svid_signed_by_the_root() {
    let authority = authority();
    let issued = authority.issue_workload(&cart(), DAY).unwrap();
    let root = Pem::iter_from_buffer(authority.root_pem().as_bytes()).next().unwrap().unwrap();
    let root = root.parse_x509().unwrap();
    let leaf = Pem::iter_from_buffer(issued.chain_pem.as_bytes()).next().unwrap().unwrap();
    let leaf = leaf.parse_x509().unwrap();

    leaf.verify_signature(Some(root.public_key())).unwrap();
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign() && !usage.value.crl_sign(), "X.509-SVID 4.3 forbids both");
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(extended.value.server_auth && extended.value.client_auth && !extended.value.any);
    assert!(!leaf.is_ca());

    let summary = describe(issued.chain_pem.as_bytes()).unwrap();
    assert_eq!(summary.uris, ["spiffe://cluster.local/ns/shop/sa/cart"]);
    assert_eq!((summary.subject.as_str(), summary.names_critical), ("", true));
    assert_eq!(summary.issuer, "O=weft, CN=weft root of cluster.local");
    assert_eq!(SystemTime::from(summary.not_before), epoch() - CLOCK_TOLERANCE);
    assert_eq!(SystemTime::from(summary.not_after), epoch() + DAY);
    assert_eq!(describe_all(issued.chain_pem.as_bytes()).unwrap().len(), 1, "the root is not sent with the chain");
}

#[test]
fn a_server_certificate_has_its_dns_name_and_is_no_clients() {
    let issued = authority().issue_server("weft.weft-system.svc", DAY).unwrap();
    let summary = describe(issued.chain_pem.as_bytes()).unwrap();
    assert_eq!((summary.dns_names, summary.uris), (vec!["weft.weft-system.svc".to_owned()], vec![]));
    let pem = Pem::iter_from_buffer(issued.chain_pem.as_bytes()).next().unwrap().unwrap();
    let certificate = pem.parse_x509().unwrap();
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && !extended.client_auth);
}

#[test]
fn serials_are_random_and_positive() {
    let authority = authority();
    let serials: std::collections::BTreeSet<_> = (0..64)
        .map(|_| describe(authority.issue_workload(&cart(), DAY).unwrap().chain_pem.as_bytes()).unwrap().serial)
        .collect();
    assert_eq!(serials.len(), 64);
    assert!(serials.iter().all(|serial| u8::from_str_radix(&serial[..2], 16).unwrap() < 0x80));
}

#[test]
fn no_leaf_outlives_the_root() {
    let issued = authority().issue_workload(&cart(), ROOT_LIFETIME * 2).unwrap();
    assert_eq!(issued.not_after, epoch() + ROOT_LIFETIME);
}

#[test]
fn an_identity_of_another_trust_domain_is_refused() {
    let foreign = SpiffeId::new("other.org".parse().unwrap(), ServiceAccountKey::new("shop", "cart"));
    let error = authority().issue_workload(&foreign, DAY).unwrap_err();
    assert!(matches!(error, CaError::ForeignIdentity { .. }), "{error}");
}

#[test]
fn no_debug_output_shows_a_key() {
    let authority = authority();
    let issued = authority.issue_workload(&cart(), DAY).unwrap();
    let secret_line = issued.key.expose_pem().lines().nth(1).unwrap().to_owned();
    let text = format!("{authority:?} {issued:?}");
    assert!(!text.contains(&secret_line) && !text.contains("PRIVATE KEY"), "{text}");
}

#[test]
fn the_root_is_made_once_and_read_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("ca");
    let first = load(&dir).unwrap();
    assert_eq!(load(&dir).unwrap().root_pem(), first.root_pem());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&dir), mode(&dir.join("root-key.pem"))), (0o700, 0o600));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn what_a_crash_left_behind_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("root.pem.new"), "half").unwrap();
    fs::write(dir.path().join("root-key.pem.new"), "half").unwrap();
    load(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn all_who_start_at_once_get_the_same_root() {
    let dir = tempfile::tempdir().unwrap();
    let barrier = std::sync::Barrier::new(8);
    // Each opens the directory for itself, so the lock is between them as it is between processes.
    let roots: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
        let load = || {
            barrier.wait();
            load(dir.path()).unwrap().root_pem().to_owned()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(roots.len(), 1);
}

#[test]
fn a_root_that_cannot_be_used_is_refused_with_its_reason() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &str); 9] = [
        ("key readable by the group", |dir| chmod(&dir.join("root-key.pem"), 0o640), "has mode 0640"),
        ("key readable by all", |dir| chmod(&dir.join("root-key.pem"), 0o604), "has mode 0604"),
        ("no key", |dir| fs::remove_file(dir.join("root-key.pem")).unwrap(), "root-key.pem is missing while"),
        ("no certificate", |dir| fs::remove_file(dir.join("root.pem")).unwrap(), "root.pem is missing while"),
        ("empty certificate", |dir| fs::write(dir.join("root.pem"), "").unwrap(), "no PEM certificate"),
        (
            "damaged certificate",
            |dir| {
                let pem = fs::read_to_string(dir.join("root.pem")).unwrap();
                fs::write(dir.join("root.pem"), pem.replacen("MII", "AAA", 1)).unwrap();
            },
            "holds no X.509 certificate",
        ),
        ("damaged key", |dir| fs::write(dir.join("root-key.pem"), "hello").unwrap(), "not a private key in PEM"),
        (
            "another root's key",
            |dir| fs::write(dir.join("root-key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap(),
            "do not belong together",
        ),
        (
            "a leaf in place of the root",
            |dir| {
                let leaf = authority().issue_workload(&cart(), DAY).unwrap();
                fs::write(dir.join("root.pem"), leaf.chain_pem).unwrap();
                fs::write(dir.join("root-key.pem"), leaf.key.expose_pem()).unwrap();
            },
            "may not sign others",
        ),
    ];
    for (what, damage, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path()).unwrap();
        damage(dir.path());
        let error = load(dir.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{what}: {error}");
        assert!(error.contains(dir.path().to_str().unwrap()), "{what}: names no file: {error}");
    }
}

#[test]
fn a_root_of_another_trust_domain_or_near_its_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    load(dir.path()).unwrap();
    let other = Authority::load_or_create(dir.path(), "other.org".parse().unwrap(), fixed(epoch())).unwrap_err();
    assert!(matches!(other, CaError::OtherTrustDomain { .. }), "{other}");
    let at = |before_end: Duration| {
        let clock = fixed(epoch() + ROOT_LIFETIME - before_end);
        Authority::load_or_create(dir.path(), TrustDomain::default(), clock)
    };
    at(DAY * 8).unwrap();
    let error = at(DAY * 6).unwrap_err();
    assert!(matches!(error, CaError::Expires { .. }), "{error}");
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = load(file.path()).unwrap_err().to_string();
    assert!(error.contains(file.path().to_str().unwrap()), "{error}");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
