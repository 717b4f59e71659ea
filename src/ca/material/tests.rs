use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};

use super::*;
use crate::ca::test_clock::{epoch, fixed};
use crate::ca::{Authority, describe_all};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// As `openssl ecparam -genkey` and cert-manager write one; made for this test.
const SEC1: &str = "\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIO8FVk3LYXJh03r1SgdjMxfKtLNMRglw3Wjqd2JmUi+1oAoGCCqGSM49
AwEHoUQDQgAEEdnVilHA7c9Lo3BYdLTI9Rj0li0YOfFAUXR/zvnyN3BIrOQLedP7
zGeRhTpeme9MNQyIxabg8D9FiVy6HdQ7Ig==
-----END EC PRIVATE KEY-----
";

/// As `openssl genrsa -traditional` and cert-manager write one; made for this test.
const PKCS1: &str = "\
-----BEGIN RSA PRIVATE KEY-----
MIIEpAIBAAKCAQEAukuw1qTnys5VY/csCwYZIwzbbXE5ApIT3BTAeeBK6PrggIBJ
+wOVY/+pOn3D7P4BLAm50dk6hRX1lyI3p/EFV9HVAfa4/FzCvVo5fhDsYbXKHYLR
tzoUUz1PpWZd6SHUCUxE+8Bypg2ilbeC9eqAViykwDWBDyXRcdPe3MOAhaY1TD5F
vad6K5SPMWM3Lixq1twklImltD+fXx+cn/BXSL98mdGG1bHQtqIa735sXo/4Bmlr
3BrtINiCp9ot0heninafBrZ7vie2l8KkD+5LdtOh1lIpfo5FR6pphGfgoo46K7vt
GWM+KZsEIq2ZyjPRA1shdwFGzgyTQUxP0YHknQIDAQABAoIBAAaKZEPGR+NkAaBQ
HAIqErqwjPP8yucxyOk2laMMcneCDAeZmXSq5Z/nE2Jb6oOjpQJjuAarqq/j+2VK
PKvUh4m+XU0ORA82KYR7il5dn+hL+TPhNSrf6uPuQzbXzyRsJ9/eBzj92CNHghsM
Cu4b2il3CUoR8X1I6F989GDfVfU7NzSPMioVUgiVFj+Vz9qiV+geNYyKs1W4to1/
lYglsa1bcGkzt5O74EVb7s0X7hadh5IScI0QmYJbuPc006KvNe5lhNncmwD+ixiD
XzzFKsihA/wtbEYfHJzuMYLLPedVUaeGYA4F1WjMKuGkucMo8pDWbztJdxFhpV7j
SOm+uNECgYEA5QV2I95aQHvn9Pl3P6ujUa7mFRyoI22uaVocBA6+NqNQctf4lZ6c
bxHloasEmHbWTOa+RKcuc+CyFIzcre3eYPpk4dibZh+TFp/0I6nlArvOb2vLvRMC
T8fdBGOA9i9XLbj83PZEqG8V6AK9mYnyIFXWHRciU966/YCjVMKni20CgYEA0D3D
HChdNLo4pFeuBTNtHwBlNYmi3VwjFrak2s5YWwiSb3FDLHwwwpb2s1Lge2IufUOV
+0SOupVb2GA8UG24m+8B5zsqRvFhbQ0NNw2avcVcq/SZh0/wa1Gh5h4LySpqvVKZ
Ig+3jm+My3H4d5vPO+8w11hd5OyDbeFyKTMlT/ECgYEAiUPsuzLaBSw+qqWaw56s
FJkvbhfu7s0ebCaGBCiR+U2JOkwXwhV+zVN8vpkx9+/CIfVqtNs/DFTwZ0DGQ7j+
QEHTlUmuWlcyYa0dNwLtL+ZApKeHRZvPFuJDpg29jdByAAWQCR/RpuJtztFVsmDr
rlXEL0teV8Z3bNldC8Bfi0ECgYEAzIyOdb80ZtGxR8UUm+k6++PQhrlO8G9LzEjW
QFPGOI2AAdXYrP7Eiq/tXpI/DRORJNxZm7ppFOAXmsBVHo/YcdthHDhiu9Lo50yV
uYk0gco20HXwxRiByXkjNb43x39R3+wdnXag0FnEjCbEcQDsnCvE5xLXEEI+i5WT
JOMneJECgYAb8NgtfuRm3vAJIijpSj01YEbHLkW6AqxrCTDQSwShUwp8PoO1umks
ilhG5ykmkDCxmnpLhHVrHRgXD+ykg2q7ds0ixt3RQRrinqQqBc6WdhDJqC2O4jIb
lpDrXLzHP0VqwGn1thP+yfkFA8cVWl0pxISTwCUVl71FoI3mDkP9TA==
-----END RSA PRIVATE KEY-----
";

/// A certificate authority of a company: a root, and below it an intermediate one for the mesh.
struct Company {
    root: String,
    root_issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (epoch().into(), (epoch() + DAY * 3650).into());
    params
}

impl Company {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params("company root").self_signed(&key).unwrap();
        Self { root: certificate.pem(), root_issuer: Issuer::new(params("company root"), key) }
    }

    fn intermediate(&self, key: &KeyPair, key_pem: &str) -> Material {
        let certificate = params("mesh").signed_by(key, &self.root_issuer).unwrap();
        Material {
            certificates: certificate.pem(),
            key: PrivateKey::from_pem(key_pem.to_owned()),
            roots: Some(self.root.clone()),
        }
    }
}

fn with_new_key(company: &Company) -> Material {
    let key = KeyPair::generate().unwrap();
    company.intermediate(&key, &key.serialize_pem())
}

fn origin() -> Origin {
    let [certificates, key, roots] = ["tls.crt", "tls.key", "ca.crt"].map(|name| format!("Secret a/b, {name}"));
    Origin { certificates, key, roots }
}

fn authority(material: &Material) -> Result<Authority, CaError> {
    Authority::from_material(material, &origin(), TrustDomain::default(), fixed(epoch()))
}

/// The subjects of what a leaf is presented with, and whether each is signed by the next and the last by the root.
fn way_of_a_leaf(authority: &Authority) -> (Vec<String>, bool) {
    let issued = authority.issue_workload(&"spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(), DAY).unwrap();
    let subjects = describe_all(issued.chain_pem.as_bytes()).unwrap().into_iter().map(|summary| summary.subject);
    let whole = check_way(&blocks(&issued.chain_pem).unwrap(), &blocks(authority.root_pem()).unwrap(), &origin());
    (subjects.collect(), whole.is_ok())
}

#[test]
fn a_root_signs_without_company() {
    let root = Material::new_root(&TrustDomain::default(), epoch()).unwrap();
    let authority = authority(&root).unwrap();
    assert_eq!(way_of_a_leaf(&authority), (vec![String::new()], true));
    assert_eq!(authority.root_pem(), root.certificates);
    let with_root_beside = Material { roots: Some(root.certificates.clone()), ..root };
    let beside =
        Authority::from_material(&with_root_beside, &origin(), TrustDomain::default(), fixed(epoch())).unwrap();
    assert_eq!(way_of_a_leaf(&beside).0, [""], "as cert-manager writes a self-signed one");
}

#[test]
fn an_intermediate_certificate_is_presented_with_each_leaf_and_its_root_is_not() {
    let company = Company::new();
    let material = with_new_key(&company);
    let leaf_way = way_of_a_leaf(&authority(&material).unwrap());
    assert_eq!(leaf_way, (vec![String::new(), "CN=mesh".to_owned()], true));
    let whole = Material { certificates: material.certificates.clone() + &company.root, ..material };
    assert_eq!(way_of_a_leaf(&authority(&whole).unwrap()).0, ["", "CN=mesh"]);
    assert_eq!(authority(&whole).unwrap().root_pem(), company.root);
}

#[test]
fn keys_are_read_in_the_forms_that_cert_manager_writes() {
    let company = Company::new();
    for pem in [SEC1, PKCS1] {
        let key = key_pair(&PrivateKey::from_pem(pem.to_owned())).unwrap();
        let authority = authority(&company.intermediate(&key, pem)).unwrap();
        assert!(way_of_a_leaf(&authority).1, "{}", &pem[..30]);
    }
}

#[test]
fn what_cannot_be_used_says_why_and_shows_no_key() {
    let company = Company::new();
    let good = with_new_key(&company);
    let cases = [
        (Material { roots: None, ..good.clone() }, "there is no Secret a/b, ca.crt"),
        (Material { roots: Some(Company::new().root), ..good.clone() }, "`CN=mesh` is not signed by a root of"),
        (Material { roots: Some(String::new()), ..good.clone() }, "ca.crt: not a usable root certificate"),
        (
            Material { certificates: company.root.clone() + &good.certificates, ..good.clone() },
            "do not belong together",
        ),
        (
            Material { certificates: good.certificates.clone() + &with_new_key(&company).certificates, ..good.clone() },
            "is not signed by the one behind it",
        ),
        (
            Material { key: PrivateKey::from_pem(SEC1.replace("BEGIN EC", "BEGIN")), ..good.clone() },
            "tls.key: not a private key",
        ),
    ];
    for (material, expected) in cases {
        let error = authority(&material).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("Secret a/b"), "{expected}: {error}");
        assert!(!error.contains(SEC1.lines().nth(1).unwrap()), "{error}");
    }
}

#[test]
fn a_renewed_certificate_of_the_same_root_is_taken_up_and_one_of_another_is_not() {
    let company = Company::new();
    let authority = authority(&with_new_key(&company)).unwrap();
    let next = with_new_key(&company);
    authority.renew(&next, &origin()).unwrap();
    assert!(way_of_a_leaf(&authority).1);
    let signed_by_next = authority.issue_server("weft", DAY).unwrap().chain_pem;
    assert!(signed_by_next.ends_with(&next.certificates), "{signed_by_next}");

    let error = authority.renew(&with_new_key(&Company::new()), &origin()).unwrap_err();
    assert!(matches!(error, CaError::OtherRoot { .. }), "{error}");
    assert!(
        authority.issue_server("weft", DAY).unwrap().chain_pem.ends_with(&next.certificates),
        "what was used stays"
    );
    assert_eq!(authority.root_pem(), company.root);
}
