use std::collections::BTreeMap;

use super::*;
use crate::envoy::in_clear;
use crate::mesh::TrustDomain;
use crate::policy::AllowPolicy;

fn plan(mtls: MtlsMode, authorization: AuthorizationMode) -> InboundPlan {
    InboundPlan {
        ipv6: false,
        trust_domain: TrustDomain::default(),
        mtls,
        mtls_ports: BTreeMap::new(),
        authorization,
        probes: BTreeSet::new(),
        allow: Vec::new(),
        rates: BTreeMap::new(),
        telemetry: Default::default(),
    }
}

fn named<'a>(listener: &'a Listener, name: &str) -> &'a FilterChain {
    listener.filter_chains.iter().find(|chain| chain.name == name).expect("a chain of this name")
}

#[test]
fn a_change_of_mode_leaves_the_chains_of_those_alone_whom_it_does_not_concern() {
    use AuthorizationMode::{Audit, Enforce, Permissive};
    let listener = |mtls, authorization| super::listener(&plan(mtls, authorization));
    let strict = listener(MtlsMode::Strict, Permissive);
    assert_eq!(strict.filter_chains, listener(MtlsMode::Permissive, Permissive).filter_chains);
    for authorization in [Audit, Enforce] {
        let other = listener(MtlsMode::Permissive, authorization);
        for name in ["http-1", "http-2", "plaintext-http"] {
            assert_eq!(named(&strict, name), named(&other, name), "{authorization:?}");
        }
    }
    let but_chains =
        |listener: &Listener| Listener { filter_chains: Vec::new(), default_filter_chain: None, ..listener.clone() };
    assert_eq!(but_chains(&strict), but_chains(&listener(MtlsMode::Permissive, Enforce)), "Envoy updates it in place");
}

#[test]
fn raw_connections_in_clear_are_served_where_somebody_could_be_allowed() {
    use AuthorizationMode::{Audit, Enforce, Permissive};
    let open = |mtls, authorization| listener(&plan(mtls, authorization)).default_filter_chain.is_some();
    assert!(open(MtlsMode::Permissive, Permissive) && open(MtlsMode::Permissive, Audit));
    assert!(!open(MtlsMode::Permissive, Enforce));
    assert!(![Permissive, Audit, Enforce].into_iter().any(|authorization| open(MtlsMode::Strict, authorization)));
}

#[test]
fn a_port_with_a_mode_of_its_own_has_all_chains_and_its_requests_a_rule() {
    for (mtls, other) in [(MtlsMode::Strict, MtlsMode::Permissive), (MtlsMode::Permissive, MtlsMode::Strict)] {
        let mut plan = plan(mtls, AuthorizationMode::Permissive);
        let everywhere = in_clear::routes(&plan);
        // The sidecar's own ports cannot be opened.
        plan.mtls_ports = [8080, INBOUND_PORT, OUTBOUND_PORT].map(|port| (port, other)).into();
        let listener = listener(&plan);
        let on = |port: u16| {
            let fits = |chain: &&FilterChain| {
                chain.filter_chain_match.as_ref().is_some_and(|m| m.destination_port == uint32(port.into()))
            };
            listener.filter_chains.iter().filter(fits).count()
        };
        assert_eq!((on(8080), on(INBOUND_PORT), on(OUTBOUND_PORT)), (6, 1, 1));
        let raw = &named(&listener, "plaintext-raw_buffer-8080").filters;
        assert_eq!(*raw == nowhere(), other == MtlsMode::Strict);
        assert_ne!(in_clear::routes(&plan), everywhere);
    }
}

#[test]
fn under_enforcement_those_alone_connect_who_may_to_some_port() {
    let allow = |target: &str, source: &str, allow| AllowPolicy {
        target: target.to_owned(),
        sources: [source.parse().expect("an identity")].into(),
        allow,
    };
    let mut plan = plan(MtlsMode::Strict, AuthorizationMode::Enforce);
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let tcp = Allow::Tcp { only: None, except: BTreeSet::new() };
    plan.allow = vec![
        allow("shop/tcp", web, tcp),
        allow("shop/http", "spiffe://cluster.local/ns/shop/sa/other", Allow::Http { ports: None, matches: Vec::new() }),
    ];
    assert_eq!(tcp_callers(&plan).into_iter().map(ToString::to_string).collect::<Vec<_>>(), [web]);
    let socket = |plan: &InboundPlan| named(&listener(plan), "tcp").transport_socket.clone();
    let of_web = socket(&plan);
    plan.allow.clear();
    assert_ne!(socket(&plan), of_web);
    plan.authorization = AuthorizationMode::Permissive;
    assert_eq!(socket(&plan), Some(tls::downstream(&plan.trust_domain)));
}
