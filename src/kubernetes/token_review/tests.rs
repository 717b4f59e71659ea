use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::UserInfo;

use super::*;
use crate::ca::test_clock::{epoch, tokio_clock};

/// What the API server answers, and how often it was asked.
#[derive(Default)]
struct Server {
    answer: Mutex<Option<Result<TokenReviewStatus, RequestError>>>,
    asked: AtomicUsize,
}

impl Reviewer for Arc<Server> {
    fn review<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, RequestError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap().clone().unwrap();
        Box::pin(std::future::ready(answer))
    }
}

#[derive(Default)]
struct Cluster(Mutex<BTreeMap<PodKey, (Arc<str>, ServiceAccountKey)>>);

impl Pods for Cluster {
    fn pod(&self, pod: &PodKey) -> Option<(Arc<str>, ServiceAccountKey)> {
        self.0.lock().unwrap().get(pod).cloned()
    }
}

struct Fixture {
    reviews: TokenReviews,
    server: Arc<Server>,
    cluster: Arc<Cluster>,
}

fn good() -> TokenReviewStatus {
    let extra = [(POD_NAME, "cart-1"), (POD_UID, "uid-1")];
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![AUDIENCE.to_owned()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:shop:cart".to_owned()),
            extra: Some(extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()])).into()),
            ..UserInfo::default()
        }),
        ..TokenReviewStatus::default()
    }
}

/// A token that only looks like one: who signed it is for the API server to say.
fn token(audience: &str, lives: i64) -> String {
    let now = i64::try_from(epoch().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let parts = [serde_json::json!({"alg": "ES256"}), serde_json::json!({"aud": [audience], "exp": now + lives})];
    let [header, claims] = parts.map(|part| {
        let text = serde_json::to_value(ByteString(part.to_string().into_bytes())).unwrap();
        text.as_str().unwrap().trim_end_matches('=').replace('+', "-").replace('/', "_")
    });
    format!("{header}.{claims}.c2lnbmVk")
}

impl Fixture {
    fn new() -> Self {
        let (server, cluster) = (Arc::new(Server::default()), Arc::new(Cluster::default()));
        let reviews =
            TokenReviews::with(Box::new(server.clone()), cluster.clone(), TrustDomain::default(), tokio_clock());
        let fixture = Self { reviews, server, cluster };
        fixture.answers(Ok(good()));
        fixture.runs("uid-1", "cart");
        fixture
    }

    fn answers(&self, answer: Result<TokenReviewStatus, RequestError>) {
        *self.server.answer.lock().unwrap() = Some(answer);
    }

    fn runs(&self, uid: &str, account: &str) {
        let record = (uid.into(), ServiceAccountKey::new("shop", account));
        self.cluster.0.lock().unwrap().insert(PodKey::new("shop", "cart-1"), record);
    }

    fn asked(&self) -> usize {
        self.server.asked.load(Ordering::Relaxed)
    }

    async fn check(&self, token: &str) -> Result<String, AuthError> {
        let identity = self.reviews.authenticate(token).await?;
        Ok(format!("{} {}", identity.spiffe, identity.pod.unwrap()))
    }
}

fn down() -> Result<TokenReviewStatus, RequestError> {
    Err(RequestError::Unanswered("connection refused".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_token_speaks_for_its_pod_and_is_asked_for_once_a_minute() {
    let fixture = Fixture::new();
    let token = token(AUDIENCE, 3600);
    for _ in 0..3 {
        let expected = "spiffe://cluster.local/ns/shop/sa/cart shop/cart-1";
        assert_eq!(fixture.check(&token).await.as_deref(), Ok(expected));
    }
    assert_eq!(fixture.asked(), 1);
    tokio::time::advance(GOOD_FOR).await;
    fixture.check(&token).await.unwrap();
    assert_eq!(fixture.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_good_at_sight_is_not_asked_for() {
    let fixture = Fixture::new();
    let cases = [
        (token("api", 3600), "not for the audience `weft-xds`"),
        (token(AUDIENCE, -901), "expired 901 s ago"),
        ("opaque".to_owned(), "no ServiceAccount token"),
        ("x".repeat(MAX_LENGTH + 1), "bytes long"),
    ];
    for (token, expected) in cases {
        let error = fixture.check(&token).await.unwrap_err();
        assert!(matches!(&error, AuthError::Invalid(reason) if reason.contains(expected)), "{expected}: {error}");
        assert!(!error.to_string().contains(&token), "{error}");
    }
    assert_eq!(fixture.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_does_not_vouch_for_is_refused() {
    let bare = || TokenReviewStatus { error: Some("pod not found".to_owned()), ..TokenReviewStatus::default() };
    let user = |change: fn(&mut UserInfo)| {
        let mut status = good();
        change(status.user.as_mut().unwrap());
        status
    };
    let cases = [
        (bare(), "pod not found"),
        (TokenReviewStatus { audiences: None, ..good() }, "does not say that it is for the audience"),
        (user(|user| user.username = Some("admin".to_owned())), "no ServiceAccount's"),
        (user(|user| user.extra = None), "not bound to a pod"),
        (user(|user| drop(user.extra.as_mut().unwrap().remove(POD_UID))), "not bound to a pod"),
    ];
    for (status, expected) in cases {
        let fixture = Fixture::new();
        fixture.answers(Ok(status));
        let token = token(AUDIENCE, 3600);
        let error = fixture.check(&token).await.unwrap_err();
        assert!(matches!(&error, AuthError::Invalid(reason) if reason.contains(expected)), "{expected}: {error}");
        fixture.answers(Ok(good()));
        fixture.check(&token).await.unwrap_err();
        assert_eq!(fixture.asked(), 1, "not again at once");
        tokio::time::advance(BAD_FOR).await;
        fixture.check(&token).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_is_refused_before_its_verdict_ends() {
    let fixture = Fixture::new();
    let token = token(AUDIENCE, 3600);
    fixture.check(&token).await.unwrap();
    fixture.runs("uid-2", "cart");
    assert!(matches!(fixture.check(&token).await, Err(AuthError::Invalid(reason)) if reason.contains("earlier pod")));
    fixture.runs("uid-1", "other");
    assert!(matches!(fixture.check(&token).await, Err(AuthError::Invalid(reason)) if reason.contains("shop/other")));
    fixture.cluster.0.lock().unwrap().clear();
    let error = fixture.check(&token).await.unwrap_err();
    assert!(matches!(&error, AuthError::Unavailable(reason) if reason.contains("no pod shop/cart-1")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_not_known_yet_is_waited_for() {
    let fixture = Fixture::new();
    fixture.cluster.0.lock().unwrap().clear();
    let token = token(AUDIENCE, 3600);
    let appears = async {
        sleep(POD_APPEARS / 2).await;
        fixture.runs("uid-1", "cart");
    };
    let (checked, ()) = tokio::join!(fixture.check(&token), appears);
    checked.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_who_is_known_stays_known_for_a_while() {
    let fixture = Fixture::new();
    let token = token(AUDIENCE, 3600);
    fixture.answers(down());
    let error = fixture.check(&token).await.unwrap_err();
    assert!(matches!(&error, AuthError::Unavailable(reason) if reason.contains("connection refused")), "{error}");
    fixture.answers(Ok(good()));
    fixture.check(&token).await.unwrap();
    fixture.answers(down());
    tokio::time::advance(STALE_FOR - Duration::from_secs(1)).await;
    fixture.check(&token).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    fixture.check(&token).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn no_verdict_outlives_its_token() {
    let fixture = Fixture::new();
    let token = token(AUDIENCE, 30);
    fixture.check(&token).await.unwrap();
    tokio::time::advance(Duration::from_secs(31)).await;
    fixture.answers(Ok(TokenReviewStatus { error: Some("token has expired".to_owned()), ..Default::default() }));
    assert!(matches!(fixture.check(&token).await, Err(AuthError::Invalid(reason)) if reason.contains("expired")));
    fixture.answers(down());
    assert!(fixture.check(&token).await.is_err(), "nor while the API server is away");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_does_not_end_a_token_that_the_api_server_accepts() {
    let fixture = Fixture::new();
    fixture.check(&token(AUDIENCE, -300)).await.unwrap();
    fixture.check(&token(AUDIENCE, -300)).await.unwrap();
    assert_eq!(fixture.asked(), 2, "it is asked each time");
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_not_asked_faster_than_it_should_be() {
    let turns = Turns::default();
    for _ in 0..=AT_ONCE {
        assert_eq!(turns.take(), Some(Duration::ZERO));
    }
    let waits: Vec<_> = std::iter::from_fn(|| turns.take()).collect();
    let apart = Duration::from_secs(1) / PER_SECOND;
    assert_eq!((waits.first(), waits.last()), (Some(&apart), Some(&LONGEST_WAIT)));
    tokio::time::advance(LONGEST_WAIT).await;
    assert!(turns.take().unwrap() <= apart, "those who were sent away took no turn");
}

#[test]
fn verdicts_that_are_over_are_dropped() {
    let mut verdicts = Verdicts::default();
    let over = epoch() - Duration::from_secs(1);
    for number in 0..10_000_u32 {
        let verdict = Verdict { found: Err(String::new()), at: Instant::now(), expires: over };
        let mut digest = Digest::default();
        digest[..4].copy_from_slice(&number.to_be_bytes());
        verdicts.note(digest, verdict, epoch());
    }
    assert!(verdicts.by_token.len() <= 1_024, "{}", verdicts.by_token.len());
}
