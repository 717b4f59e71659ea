//! The playground's tokens: JWTs in the form of Kubernetes' projected ServiceAccount tokens.
//!
//! ```text
//!  weft up: TokenSigner ──token file──▶ Envoy ──authorization: Bearer──▶ weft serve: TokenVerifier ──▶ account, pod
//!               └──────────────────public key PEM (--token-key)──────────────────┘
//! ```

mod es256;

use std::time::{Duration, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use super::Clock;
use crate::mesh::{PodKey, ServiceAccountKey};

/// The audience of tokens for the control plane: those made for others are refused.
pub const AUDIENCE: &str = "weft-xds";
/// How far the clocks of the signer and the verifier may be apart.
const LEEWAY: Duration = Duration::from_secs(30);
/// A token is a few hundred bytes; nothing is parsed of what is much longer.
const MAX_LENGTH: usize = 16 * 1024;

/// Why a token is refused. No variant holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Nothing was sent.
    #[error("the token is empty; send the pod's ServiceAccount token as `authorization: Bearer TOKEN`")]
    Empty,
    /// Not a JWT at all.
    #[error("the token is not a JWT ({0}); send the pod's ServiceAccount token, whole")]
    Malformed(String),
    /// `alg` of the header is not ES256: `none`, or an algorithm that would take the public key for a shared secret.
    #[error("the token is not signed with ES256, the only algorithm that is accepted")]
    Algorithm,
    /// The signature is of another key, or the content was changed.
    #[error("the token's signature is not by this mesh's key; it may come from another or an earlier playground")]
    Signature,
    /// `aud` does not contain [`AUDIENCE`].
    #[error("the token is for the audience {0:?}, not for `weft-xds`; project one with `audience: weft-xds`")]
    Audience(Vec<String>),
    /// `exp` has passed.
    #[error("the token expired {0} s ago; the proxy must read its token file again, and the clocks must agree")]
    Expired(u64),
    /// `nbf` or `iat` is in the future.
    #[error("the token is valid only in {0} s; the clocks of signer and control plane must agree")]
    NotYetValid(u64),
    /// A claim that is needed is missing or has another type.
    #[error("the token's claims are not a ServiceAccount token's: {0}")]
    Claims(String),
    /// `sub` is no ServiceAccount.
    #[error("the token's subject `{0}` is not of the form system:serviceaccount:NAMESPACE:NAME")]
    Subject(String),
    /// `sub` and `kubernetes.io` name two accounts.
    #[error("the token's subject is ServiceAccount {subject}, but its claim kubernetes.io says {claim}")]
    Disagreement {
        /// By `sub`.
        subject: ServiceAccountKey,
        /// By `kubernetes.io`.
        claim: ServiceAccountKey,
    },
}

/// Why a key cannot be used for tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeyError {
    /// No EC public key in PEM.
    #[error(
        "not an ECDSA P-256 public key in PEM (-----BEGIN PUBLIC KEY-----); `weft up` writes one for `weft serve --token-key`"
    )]
    PublicKey,
    /// No key could be made.
    #[error("could not make a signing key: {0}")]
    Generate(String),
    /// Signing failed.
    #[error("could not sign a token: {0}")]
    Sign(String),
}

/// Whom a token speaks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenSubject {
    /// The ServiceAccount.
    pub account: ServiceAccountKey,
    /// The pod that the token was made for; `None` for a token that is bound to no pod.
    pub pod: Option<PodKey>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: Audience,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: KubernetesClaim,
}

/// RFC 7519, 4.1.3: one audience may stand alone.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

#[derive(Serialize, Deserialize)]
struct KubernetesClaim {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<NameClaim>,
    serviceaccount: NameClaim,
}

#[derive(Serialize, Deserialize)]
struct NameClaim {
    name: String,
}

/// Signs tokens with a key that lives as long as the signer.
pub struct TokenSigner {
    key: EncodingKey,
    public_key_pem: String,
    clock: Clock,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner").finish_non_exhaustive()
    }
}

impl TokenSigner {
    /// A signer with a new key.
    pub fn generate(clock: Clock) -> Result<Self, TokenKeyError> {
        es256::install();
        let failed = |error: &dyn std::fmt::Display| TokenKeyError::Generate(error.to_string());
        let pair = KeyPair::generate().map_err(|error| failed(&error))?;
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).map_err(|error| failed(&error))?;
        Ok(Self { key, public_key_pem: pair.public_key_pem(), clock })
    }

    /// The key that verifies its tokens, as PEM.
    pub fn public_key_pem(&self) -> &str {
        &self.public_key_pem
    }

    /// A token of `account` for `pod` (which is in the account's namespace), valid from now.
    pub fn sign(&self, account: &ServiceAccountKey, pod: &str, lifetime: Duration) -> Result<String, TokenKeyError> {
        let now = self.clock.now();
        let claims = Claims {
            aud: Audience::Many(vec![AUDIENCE.to_owned()]),
            exp: seconds(now + lifetime),
            nbf: Some(seconds(now)),
            iat: Some(seconds(now)),
            sub: format!("system:serviceaccount:{}:{}", account.namespace, account.name),
            kubernetes: KubernetesClaim {
                namespace: account.namespace.to_string(),
                pod: Some(NameClaim { name: pod.to_owned() }),
                serviceaccount: NameClaim { name: account.name.to_string() },
            },
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)
            .map_err(|error| TokenKeyError::Sign(error.to_string()))
    }
}

/// Verifies tokens with the signer's public key.
#[derive(Clone)]
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
    clock: Clock,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").finish_non_exhaustive()
    }
}

impl TokenVerifier {
    /// A verifier with the public key in `pem`.
    pub fn from_pem(pem: &[u8], clock: Clock) -> Result<Self, TokenKeyError> {
        es256::install();
        let key = DecodingKey::from_ec_pem(pem).map_err(|_| TokenKeyError::PublicKey)?;
        // Only the signature is left to the library: times are measured by our clock, and each cause has its error.
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
        Ok(Self { key, validation, clock })
    }

    /// Whom `token` speaks for, if it is valid.
    pub fn verify(&self, token: &str) -> Result<TokenSubject, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Empty);
        }
        if token.len() > MAX_LENGTH {
            return Err(TokenError::Malformed(format!("{} bytes long", token.len())));
        }
        // Claims are parsed only after the signature was verified, so that a forger learns nothing of their form.
        let claims: serde_json::Value =
            jsonwebtoken::decode(token, &self.key, &self.validation).map_err(|error| refusal(&error))?.claims;
        let claims = Claims::deserialize(claims).map_err(|error| TokenError::Claims(error.to_string()))?;
        self.check_audience(claims.aud)?;
        self.check_times(claims.exp, claims.nbf.max(claims.iat))?;
        subject(&claims.sub, claims.kubernetes)
    }

    fn check_audience(&self, audience: Audience) -> Result<(), TokenError> {
        let audiences = match audience {
            Audience::Many(audiences) => audiences,
            Audience::One(audience) => vec![audience],
        };
        if audiences.iter().any(|audience| audience == AUDIENCE) {
            Ok(())
        } else {
            Err(TokenError::Audience(audiences))
        }
    }

    fn check_times(&self, expires: u64, begins: Option<u64>) -> Result<(), TokenError> {
        let (now, leeway) = (seconds(self.clock.now()), LEEWAY.as_secs());
        if expires.saturating_add(leeway) <= now {
            return Err(TokenError::Expired(now - expires));
        }
        match begins {
            Some(begins) if begins > now + leeway => Err(TokenError::NotYetValid(begins - now)),
            _ => Ok(()),
        }
    }
}

fn subject(sub: &str, kubernetes: KubernetesClaim) -> Result<TokenSubject, TokenError> {
    let refuse = || TokenError::Subject(sub.to_owned());
    let subject = match sub.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => ServiceAccountKey::new(namespace, name),
        _ => return Err(refuse()),
    };
    let claim = ServiceAccountKey::new(kubernetes.namespace.as_str(), kubernetes.serviceaccount.name);
    if subject != claim {
        return Err(TokenError::Disagreement { subject, claim });
    }
    let pod = kubernetes.pod.map(|pod| PodKey::new(subject.namespace.clone(), pod.name));
    Ok(TokenSubject { account: subject, pod })
}

/// A name as Kubernetes allows it for namespaces and ServiceAccounts; with others a SPIFFE ID could be made ambiguous.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}

fn refusal(error: &jsonwebtoken::errors::Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
        // `none` is no algorithm that the library knows: the header does not parse.
        ErrorKind::Json(json) if json.to_string().contains("unknown variant") => TokenError::Algorithm,
        ErrorKind::Json(_) => TokenError::Malformed("its header or claims are not JSON".to_owned()),
        ErrorKind::Base64(_) | ErrorKind::Utf8(_) => TokenError::Malformed("its parts are not base64url".to_owned()),
        _ => TokenError::Malformed("it has not the three parts of a signed token".to_owned()),
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
