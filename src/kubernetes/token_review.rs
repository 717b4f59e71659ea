//! Who a sidecar is, by its projected ServiceAccount token, which the API server checks.
//!
//! ```text
//!  token ─▶ claims (cheap, proves nothing) ─▶ verdict in memory? ─▶ TokenReview, in its turn ─▶ the pod, as the mesh
//!                                                                                               knows it now
//! ```
//!
//! - The token must be for the audience `weft-xds` and bound to a pod; the pod must be alive, with the same uid and
//!   ServiceAccount. The API server refuses the token of a pod that is gone; the mesh knows it before a verdict ends.
//! - When a token has expired is for the API server to say, by whose clock it was made; what expired long ago by ours is not
//!   worth asking.
//! - A verdict is kept for a minute at most, and never beyond the token's life. While the API server does not answer, one
//!   that was good is believed for some minutes more: who reconnects then is known.
//! - A token is kept as its SHA-256 only, and is in no log. Answers are read here, since the client would log one that it
//!   cannot read, and the answer holds the token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{RequestError, send};
use crate::ca::token::AUDIENCE;
use crate::ca::{CLOCK_TOLERANCE, Clock};
use crate::mesh::{PodKey, ServiceAccountKey, SpiffeId, TrustDomain};
use crate::xds::auth::{AuthError, Authenticator, ProxyIdentity};

/// How long a good verdict is believed.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// How long a bad one is: a pod may come to be what its token says.
const BAD_FOR: Duration = Duration::from_secs(5);
/// How long a good verdict is believed while the API server does not answer.
const STALE_FOR: Duration = Duration::from_secs(600);
/// How long a pod may take to be known here after it is to the API server.
const POD_APPEARS: Duration = Duration::from_secs(2);
const POD_LOOK: Duration = Duration::from_millis(25);
/// TokenReviews a second in the long run, and at once after a quiet time: all sidecars come back after a restart.
const PER_SECOND: u32 = 200;
const AT_ONCE: u32 = 400;
/// Who would wait longer for its turn is told to come back.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// A token is some 1,500 bytes; nothing is done with what is much longer.
const MAX_LENGTH: usize = 16 * 1024;
/// What the API server says of the pod that a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The pods of the mesh as they are now.
pub trait Pods: Send + Sync {
    /// The uid and the ServiceAccount of a pod that is alive and has an address.
    fn pod(&self, pod: &PodKey) -> Option<(Arc<str>, ServiceAccountKey)>;
}

/// Asks the API server.
trait Reviewer: Send + Sync {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, RequestError>>;
}

/// Knows sidecars by their tokens.
pub struct TokenReviews {
    reviewer: Box<dyn Reviewer>,
    pods: Arc<dyn Pods>,
    trust_domain: TrustDomain,
    clock: Clock,
    verdicts: Mutex<Verdicts>,
    turns: Turns,
}

/// Whom a token speaks for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Subject {
    account: ServiceAccountKey,
    pod: PodKey,
    uid: String,
}

#[derive(Clone, Debug)]
struct Verdict {
    found: Result<Subject, String>,
    at: Instant,
    /// When the token itself ends.
    expires: SystemTime,
}

type Digest = [u8; 32];

#[derive(Debug, Default)]
struct Verdicts {
    by_token: HashMap<Digest, Verdict>,
    /// How many there may be before those that are over are dropped.
    tidy_at: usize,
}

impl TokenReviews {
    /// Those of the API server of `client`, for the pods of `pods`.
    pub fn new(client: Client, pods: Arc<dyn Pods>, trust_domain: TrustDomain, clock: Clock) -> Self {
        Self::with(Box::new(ApiServer(client)), pods, trust_domain, clock)
    }

    fn with(reviewer: Box<dyn Reviewer>, pods: Arc<dyn Pods>, trust_domain: TrustDomain, clock: Clock) -> Self {
        Self { reviewer, pods, trust_domain, clock, verdicts: Mutex::default(), turns: Turns::default() }
    }

    async fn identify(&self, token: &str) -> Result<ProxyIdentity, AuthError> {
        let expires = self.look_at(token)?;
        let subject = self.subject(token, expires).await?;
        self.check_pod(&subject).await?;
        let spiffe = SpiffeId::new(self.trust_domain.clone(), subject.account);
        Ok(ProxyIdentity { spiffe, pod: Some(subject.pod) })
    }

    /// What can be told without the API server: most that is wrong is told here, and costs it nothing. Returns when the
    /// token ends.
    fn look_at(&self, token: &str) -> Result<SystemTime, AuthError> {
        let invalid = |reason: String| AuthError::Invalid(reason);
        if token.len() > MAX_LENGTH {
            return Err(invalid(format!("it is {} bytes long", token.len())));
        }
        let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(token)
            .map_err(|_| invalid("it is no ServiceAccount token (a JWT with exp and aud)".to_owned()))?
            .claims;
        if !claims.aud.has(AUDIENCE) {
            return Err(invalid(format!(
                "it is not for the audience `{AUDIENCE}`; project one with `audience: {AUDIENCE}`"
            )));
        }
        let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp));
        let expires = expires.ok_or_else(|| invalid("its end is no time".to_owned()))?;
        match self.clock.now().duration_since(expires) {
            Ok(since) if since > CLOCK_TOLERANCE => Err(invalid(format!(
                "it expired {} s ago; the proxy must read its token file again, and the clocks must agree",
                since.as_secs()
            ))),
            _ => Ok(expires),
        }
    }

    async fn subject(&self, token: &str, expires: SystemTime) -> Result<Subject, AuthError> {
        let digest = digest(token);
        let known = self.verdicts().by_token.get(&digest).cloned();
        // One that has expired, as it seems, is not believed without asking.
        let known = known.filter(|_| self.clock.now() < expires);
        if let Some(verdict) = known.as_ref().filter(|verdict| verdict.is_fresh()) {
            return verdict.found.clone().map_err(AuthError::Invalid);
        }
        let asked = match self.turns.take() {
            Some(wait) => {
                sleep(wait).await;
                self.reviewer.review(token).await
            }
            None => Err(RequestError::Unanswered("too many tokens are to be checked at once; come back".to_owned())),
        };
        let found = match asked {
            Ok(status) => subject(status),
            Err(error) => {
                let good = known.filter(|verdict| verdict.at.elapsed() < STALE_FOR).and_then(|known| known.found.ok());
                return good.ok_or_else(|| AuthError::Unavailable(format!("TokenReview: {error}")));
            }
        };
        let verdict = Verdict { found: found.clone(), at: Instant::now(), expires };
        self.verdicts().note(digest, verdict, self.clock.now());
        found.map_err(AuthError::Invalid)
    }

    /// A pod that is gone, or another one of its name, is not spoken for by an old verdict.
    async fn check_pod(&self, subject: &Subject) -> Result<(), AuthError> {
        let began = Instant::now();
        loop {
            match self.pods.pod(&subject.pod) {
                Some((uid, _)) if *uid != *subject.uid => {
                    let reason = "it is of an earlier pod of this name, which is gone";
                    return Err(AuthError::Invalid(reason.to_owned()));
                }
                Some((_, account)) if account != subject.account => {
                    return Err(AuthError::Invalid(format!("pod {} runs as ServiceAccount {account}", subject.pod)));
                }
                Some(_) => return Ok(()),
                None if began.elapsed() >= POD_APPEARS => {
                    return Err(AuthError::Unavailable(format!(
                        "no pod {} with an address is known here",
                        subject.pod
                    )));
                }
                None => sleep(POD_LOOK).await,
            }
        }
    }

    /// Nothing that is done under the lock panics half-way.
    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authenticator for TokenReviews {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ProxyIdentity, AuthError>> {
        Box::pin(self.identify(token))
    }
}

impl Verdict {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < if self.found.is_ok() { GOOD_FOR } else { BAD_FOR }
    }

    fn is_over(&self, now: SystemTime) -> bool {
        self.expires <= now || self.at.elapsed() >= if self.found.is_ok() { STALE_FOR } else { BAD_FOR }
    }
}

impl Verdicts {
    fn note(&mut self, digest: Digest, verdict: Verdict, now: SystemTime) {
        self.by_token.insert(digest, verdict);
        if self.by_token.len() > self.tidy_at {
            self.by_token.retain(|_, verdict| !verdict.is_over(now));
            self.tidy_at = (2 * self.by_token.len()).max(1_024);
        }
    }
}

/// Of a JWT's claims, what tells that it is not worth asking.
#[derive(Deserialize)]
struct Claims {
    exp: u64,
    aud: Audience,
}

/// RFC 7519, 4.1.3: one audience may stand alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    Many(Vec<String>),
    One(String),
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::Many(all) => all.iter().any(|audience| audience == wanted),
            Self::One(one) => one == wanted,
        }
    }
}

fn digest(token: &str) -> Digest {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().unwrap_or_default()
}

/// Whom the API server says that the token speaks for; else why it is not good.
fn subject(status: TokenReviewStatus) -> Result<Subject, String> {
    if status.authenticated != Some(true) {
        let error = status.error.unwrap_or_else(|| "it gives no reason".to_owned());
        return Err(format!("the API server does not accept it: {error}"));
    }
    // An API server that knows no audiences leaves them out, and has not looked at them.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return Err(format!("the API server does not say that it is for the audience `{AUDIENCE}`"));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, name)) = account else {
        return Err("it is no ServiceAccount's".to_owned());
    };
    let mut extra = user.extra.unwrap_or_default();
    let mut only = |key: &str| match <[String; 1]>::try_from(extra.remove(key).unwrap_or_default()) {
        Ok([value]) if !value.is_empty() => Ok(value),
        _ => Err("it is not bound to a pod; use a projected token".to_owned()),
    };
    let (pod, uid) = (only(POD_NAME)?, only(POD_UID)?);
    Ok(Subject { account: ServiceAccountKey::new(namespace, name), pod: PodKey::new(namespace, pod), uid })
}

/// How often the API server is asked: turns are a fixed time apart, and some are saved in quiet times.
#[derive(Debug, Default)]
struct Turns(Mutex<Option<Instant>>);

impl Turns {
    /// How long to wait for a turn; `None` when that is too long, and then no turn is taken.
    fn take(&self) -> Option<Duration> {
        let (now, apart) = (Instant::now(), Duration::from_secs(1) / PER_SECOND);
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = now.checked_sub(apart * AT_ONCE).unwrap_or(now);
        let turn = next.unwrap_or(saved).max(saved);
        let wait = turn.saturating_duration_since(now);
        if wait > LONGEST_WAIT {
            return None;
        }
        *next = Some(turn + apart);
        Some(wait)
    }
}

struct ApiServer(Client);

impl Reviewer for ApiServer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, RequestError>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.to_owned() },
                ..TokenReview::default()
            };
            let unreadable = |_| RequestError::Unanswered("its answer cannot be read".to_owned());
            let body = serde_json::to_vec(&review).map_err(unreadable)?;
            let request = http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(body)
                .map_err(|error| RequestError::Unanswered(error.to_string()))?;
            let text = send("create", self.0.request_text(request)).await?;
            let review: TokenReview = serde_json::from_str(&text).map_err(unreadable)?;
            Ok(review.status.unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests;
