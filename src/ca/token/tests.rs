use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;
use crate::ca::test_clock::{epoch, fixed};

const NOW: u64 = 1_767_225_600;

fn good_claims() -> Value {
    json!({
        "aud": ["weft-xds"],
        "exp": NOW + 3600,
        "nbf": NOW,
        "iat": NOW,
        "sub": "system:serviceaccount:shop:cart",
        "kubernetes.io": {"namespace": "shop", "pod": {"name": "cart-0"}, "serviceaccount": {"name": "cart"}},
    })
}

/// `good_claims` with some replaced, and those that are null removed.
fn with(changes: Value) -> Value {
    let mut claims = good_claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn signed(signer: &TokenSigner, claims: &Value) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &signer.key).unwrap()
}

fn signer_and_verifier() -> (TokenSigner, TokenVerifier) {
    let signer = TokenSigner::generate(fixed(epoch())).unwrap();
    let verifier = TokenVerifier::from_pem(signer.public_key_pem().as_bytes(), fixed(epoch())).unwrap();
    (signer, verifier)
}

#[test]
fn a_signed_token_names_its_account_and_pod() {
    let (signer, verifier) = signer_and_verifier();
    let account = ServiceAccountKey::new("shop", "cart");
    let token = signer.sign(&account, "cart-0", Duration::from_secs(3600)).unwrap();
    let pod = Some(PodKey::new("shop", "cart-0"));
    assert_eq!(verifier.verify(&token), Ok(TokenSubject { account, pod }));
}

#[test]
fn tokens_that_kubernetes_may_make_are_accepted() {
    let (signer, verifier) = signer_and_verifier();
    for (what, claims) in [
        ("a single audience", with(json!({"aud": "weft-xds"}))),
        ("several audiences", with(json!({"aud": ["api", "weft-xds"]}))),
        ("claims that are not known", with(json!({"jti": "x", "iss": "https://kubernetes.default.svc"}))),
        ("expired within the leeway", with(json!({"exp": NOW - 29}))),
        ("a clock that is a little ahead", with(json!({"nbf": NOW + 29, "iat": NOW + 29}))),
        ("no nbf and iat", with(json!({"nbf": null, "iat": null}))),
    ] {
        verifier.verify(&signed(&signer, &claims)).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let unbound = with(json!({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "cart"}}}));
    assert_eq!(verifier.verify(&signed(&signer, &unbound)).unwrap().pod, None);
}

#[test]
fn each_bad_token_is_refused_for_its_own_reason() {
    let (signer, verifier) = signer_and_verifier();
    let other = TokenSigner::generate(fixed(epoch())).unwrap();
    let sign = |changes| signed(&signer, &with(changes));
    let good = signed(&signer, &good_claims());
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("three parts") };
    let none_header = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"; // {"alg":"none","typ":"JWT"}
    let hs256 = format!("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{claims}"); // {"alg":"HS256","typ":"JWT"}
    let public_key_as_secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, signer.public_key_pem().as_bytes());
    let hs256 =
        format!("{hs256}.{}", BASE64_URL_SAFE_NO_PAD.encode(ring::hmac::sign(&public_key_as_secret, hs256.as_bytes())));
    let other_claims = signed(&other, &with(json!({"sub": "system:serviceaccount:shop:admin"})));
    let spliced = format!("{header}.{}.{signature}", other_claims.split('.').nth(1).unwrap());
    let malformed = |reason: &str| TokenError::Malformed(reason.to_owned());
    let three_parts = malformed("it has not the three parts of a signed token");
    let subject = |text: &str| TokenError::Subject(text.to_owned());
    let account = ServiceAccountKey::new;

    let cases: Vec<(&str, String, TokenError)> = vec![
        ("empty", String::new(), TokenError::Empty),
        ("no token", "hello".to_owned(), three_parts.clone()),
        ("without its signature", format!("{header}.{claims}"), three_parts),
        ("two dots alone", "..".to_owned(), malformed("its header or claims are not JSON")),
        ("not base64", format!("{header}.{claims}.***"), malformed("its parts are not base64url")),
        ("too long", "a".repeat(20_000), malformed("20000 bytes long")),
        ("truncated in the signature", good[..good.len() - 6].to_owned(), TokenError::Signature),
        ("claims of another token", spliced, TokenError::Signature),
        ("another key", signed(&other, &good_claims()), TokenError::Signature),
        ("alg none", format!("{none_header}.{claims}."), TokenError::Algorithm),
        ("alg none with a signature", format!("{none_header}.{claims}.{signature}"), TokenError::Algorithm),
        ("HS256 with the public key as secret", hs256, TokenError::Algorithm),
        ("expired", sign(json!({"exp": NOW - 60})), TokenError::Expired(60)),
        ("expired at the end of the leeway", sign(json!({"exp": NOW - 30})), TokenError::Expired(30)),
        ("not yet valid", sign(json!({"nbf": NOW + 600})), TokenError::NotYetValid(600)),
        ("issued in the future", sign(json!({"iat": NOW + 60})), TokenError::NotYetValid(60)),
        ("for another audience", sign(json!({"aud": ["api"]})), TokenError::Audience(vec!["api".to_owned()])),
        ("for no audience", sign(json!({"aud": []})), TokenError::Audience(vec![])),
        ("subject is a user", sign(json!({"sub": "alice"})), subject("alice")),
        (
            "subject without a name",
            sign(json!({"sub": "system:serviceaccount:shop:"})),
            subject("system:serviceaccount:shop:"),
        ),
        (
            "subject that would be another path",
            sign(json!({"sub": "system:serviceaccount:shop/sa/x:cart"})),
            subject("system:serviceaccount:shop/sa/x:cart"),
        ),
        (
            "subject of another account",
            sign(json!({"sub": "system:serviceaccount:shop:admin"})),
            TokenError::Disagreement { subject: account("shop", "admin"), claim: account("shop", "cart") },
        ),
        (
            "subject of another namespace",
            sign(json!({"sub": "system:serviceaccount:bank:cart"})),
            TokenError::Disagreement { subject: account("bank", "cart"), claim: account("shop", "cart") },
        ),
    ];
    for (what, token, expected) in cases {
        assert_eq!(verifier.verify(&token), Err(expected), "{what}");
    }
    for (what, changes) in [
        ("no kubernetes.io", json!({"kubernetes.io": null})),
        ("no account in kubernetes.io", json!({"kubernetes.io": {"namespace": "shop"}})),
        ("no audience", json!({"aud": null})),
        ("no expiry", json!({"exp": null})),
        ("an expiry that is no number", json!({"exp": "never"})),
        ("a negative expiry", json!({"exp": -1})),
    ] {
        let error = verifier.verify(&sign(changes)).unwrap_err();
        assert!(matches!(error, TokenError::Claims(_)), "{what}: {error}");
    }
}

#[test]
fn only_a_public_key_is_taken_as_verification_key() {
    let private = KeyPair::generate().unwrap().serialize_pem();
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for pem in ["", "hello", private.as_str(), certificate] {
        let error = TokenVerifier::from_pem(pem.as_bytes(), fixed(epoch())).unwrap_err();
        assert_eq!(error, TokenKeyError::PublicKey, "{} bytes", pem.len());
    }
}

#[test]
fn no_debug_output_shows_a_key() {
    let (signer, verifier) = signer_and_verifier();
    assert_eq!(format!("{signer:?} {verifier:?}"), "TokenSigner { .. } TokenVerifier { .. }");
}
