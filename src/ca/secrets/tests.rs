use super::*;
use crate::ca::Clock;
use crate::ca::describe::describe;
use crate::ca::test_clock::tokio_clock;
use crate::mesh::TrustDomain;

const LIFETIME: Duration = Duration::from_secs(1000);

fn store() -> Arc<SecretStore> {
    let authority = Arc::new(Authority::in_memory(TrustDomain::default(), tokio_clock()).unwrap());
    Arc::new(SecretStore::new(authority, LeafPolicy { lifetime: LIFETIME, jitter: 0.1 }))
}

fn cart() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

fn proxy(pod: &str) -> ProxyId {
    format!("{pod}.shop").parse().unwrap()
}

fn certificate_of(resource: &Resource) -> (Vec<u8>, Vec<u8>) {
    let secret = Secret::decode(resource.body.clone()).unwrap();
    assert_eq!(secret.name, resource.name.as_str());
    let Some(Type::TlsCertificate(certificate)) = secret.r#type else { panic!("a certificate") };
    let bytes = |source: Option<DataSource>| match source.unwrap().specifier {
        Some(Specifier::InlineString(text)) => text.into_bytes(),
        other => panic!("an inline string, not {other:?}"),
    };
    (bytes(certificate.certificate_chain), bytes(certificate.private_key))
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_minted_once_for_a_proxy_and_is_of_its_identity() {
    let store = store();
    let first = store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap();
    let again = store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(store.minted(), 1);
    let (chain, _) = certificate_of(&first);
    assert_eq!(describe(&chain).unwrap().spiffe_ids().collect::<Vec<_>>(), [cart().to_string()]);

    let of_another_pod = store.secret(&cart(), &proxy("cart-2"), &WORKLOAD.into()).unwrap();
    assert_ne!(certificate_of(&of_another_pod).1, certificate_of(&first).1, "each proxy has a key of its own");
    let other = "spiffe://cluster.local/ns/shop/sa/catalog".parse().unwrap();
    assert_ne!(store.secret(&other, &proxy("cart-1"), &WORKLOAD.into()).unwrap().version, first.version);
}

#[tokio::test(start_paused = true)]
async fn the_root_is_the_same_for_all_and_other_names_and_meshes_have_no_secret() {
    let store = store();
    let root = store.secret(&cart(), &proxy("cart-1"), &MESH_ROOT.into()).unwrap();
    let secret = Secret::decode(root.body.clone()).unwrap();
    let Some(Type::ValidationContext(context)) = secret.r#type else { panic!("a validation context") };
    assert_eq!(context.trusted_ca, Some(inline(store.authority.root_pem())));
    assert_eq!(store.secret(&cart(), &proxy("cart-1"), &"spiffe://cluster.local/ns/shop/sa/other".into()), None);
    let foreign = "spiffe://other.org/ns/shop/sa/cart".parse().unwrap();
    assert_eq!(store.secret(&foreign, &proxy("cart-1"), &WORKLOAD.into()), None);
    assert_eq!(store.minted(), 0);
}

/// A stream that asks again whenever it is told to.
async fn stream(store: &SecretStore, versions: &mut Vec<(SystemTime, crate::snapshot::Version)>) {
    let mut changes = store.changes();
    loop {
        let secret = store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap();
        versions.push((store.authority.clock().now(), secret.version));
        changes.changed().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_in_use_is_renewed_at_about_half_of_its_life() {
    let store = store();
    let mut versions = Vec::new();
    tokio::select! {
        () = store.renew_forever() => {}
        () = stream(&store, &mut versions) => {}
        () = tokio::time::sleep(LIFETIME * 10) => {}
    }
    assert!((17..=25).contains(&versions.len()), "{versions:?}");
    for pair in versions.windows(2) {
        let life = pair[1].0.duration_since(pair[0].0).unwrap();
        assert!((LIFETIME.mul_f64(0.4)..=LIFETIME.mul_f64(0.61)).contains(&life), "{life:?}");
        assert_ne!(pair[0].1, pair[1].1, "a new leaf");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_nobody_asks_for_again_is_dropped() {
    let store = store();
    let running = store.clone();
    let task = tokio::spawn(async move { running.renew_forever().await });
    store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap();
    tokio::time::sleep(LIFETIME.mul_f64(0.3)).await;
    assert_eq!(store.leafs().len(), 1);
    tokio::time::sleep(LIFETIME.mul_f64(0.4)).await;
    assert_eq!((store.leafs().len(), store.minted(), *store.changes().borrow()), (0, 1, 1));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_is_due_is_not_handed_out_even_if_nobody_runs_the_renewal() {
    let store = store();
    let first = store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap();
    tokio::time::sleep(LIFETIME.mul_f64(0.7)).await;
    assert_ne!(store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap().version, first.version);
}

#[tokio::test(start_paused = true)]
async fn leafs_that_were_minted_by_a_clock_that_was_far_ahead_are_replaced_when_it_is_set() {
    let (ahead, real) = (Arc::new(Mutex::new(Duration::ZERO)), tokio_clock());
    let clock = {
        let ahead = ahead.clone();
        Clock::new(move || real.now() + *ahead.lock().unwrap())
    };
    let authority = Arc::new(Authority::in_memory(TrustDomain::default(), clock).unwrap());
    let store = Arc::new(SecretStore::new(authority, LeafPolicy::default()));
    for (minutes, replaced) in [(5, false), (60, true)] {
        *ahead.lock().unwrap() = Duration::from_mins(minutes);
        let running = store.clone();
        let task = tokio::spawn(async move { running.renew_forever().await });
        let proxy = proxy(&format!("cart-{minutes}"));
        let first = store.secret(&cart(), &proxy, &WORKLOAD.into()).unwrap();
        let told = *store.changes().borrow();
        *ahead.lock().unwrap() = Duration::ZERO;
        tokio::time::sleep(LOOK + Duration::from_secs(1)).await;
        assert_eq!(*store.changes().borrow() > told, replaced, "{minutes} min: streams are told to ask again");
        let now = store.secret(&cart(), &proxy, &WORKLOAD.into()).unwrap();
        assert_eq!(now.version != first.version, replaced, "{minutes} min");
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn renewals_of_leafs_minted_together_are_spread() {
    let store = store();
    let policy = store.policy;
    let now = store.authority.clock().now();
    let renewals: Vec<_> = (0..200).map(|_| policy.renewal(now).duration_since(now).unwrap()).collect();
    let (first, last) = (renewals.iter().min().unwrap(), renewals.iter().max().unwrap());
    assert!(*last - *first > LIFETIME.mul_f64(0.1), "{first:?} to {last:?}");
}

#[tokio::test(start_paused = true)]
async fn no_debug_output_shows_a_key() {
    let store = store();
    let secret = store.secret(&cart(), &proxy("cart-1"), &WORKLOAD.into()).unwrap();
    let (_, key) = certificate_of(&secret);
    let line = String::from_utf8(key).unwrap().lines().nth(1).unwrap().to_owned();
    let text = format!("{store:?} {secret:?}");
    assert!(!text.contains(&line) && !text.contains("PRIVATE KEY"), "{text}");
}
