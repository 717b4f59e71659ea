//! The other replicas of the control plane: who they are, and what they say when they are asked.
//!
//! ```text
//!  EndpointSlices of the Service `weft` ─▶ Replica ──ListAnswers, all at once──▶ Reply
//! ```
//!
//! Each serves the inspection API at the Service's admin port. A new connection for each round costs little: one is made
//! only while an object is under way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::inspect::answers::{self, Generation, ReplicaAnswers};
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::mesh::Diagnostic;
use crate::mesh::object::EndpointSlice;

/// The Service of the control plane, in its own namespace.
pub(super) const SERVICE: &str = "weft";
/// The name of its port for the inspection API.
const PORT: &str = "http-admin";
/// So long a replica may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many objects are asked for at a time, which bounds the messages.
const AT_A_TIME: usize = 500;
/// Bytes of an answer; refusals are in Envoy's words, which may be many.
const ANSWER: usize = 32 << 20;

/// A replica, as the endpoints of the control plane's Service tell of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Its pod's name.
    pub name: Arc<str>,
    /// Where its admin port is: an address for each IP family.
    pub addresses: Vec<SocketAddr>,
    /// Sidecars are sent to it. One that begins, ends or hangs is not ready.
    pub ready: bool,
}

impl Replica {
    /// Those that the EndpointSlices of the control plane's Service have, by name.
    pub fn all<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<Self> {
        let mut replicas: BTreeMap<Arc<str>, Self> = BTreeMap::new();
        for slice in slices {
            let Some(port) = slice.ports.get(PORT) else { continue };
            for endpoint in &slice.endpoints {
                let Some(pod) = &endpoint.pod else { continue };
                let new = || Self { name: pod.name.clone(), addresses: Vec::new(), ready: false };
                let replica = replicas.entry(pod.name.clone()).or_insert_with(new);
                replica.addresses.push(SocketAddr::new(endpoint.ip, *port));
                replica.ready |= endpoint.ready && !endpoint.terminating;
            }
        }
        replicas.into_values().collect()
    }
}

/// What a replica says when it is asked.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Reply {
    /// One for each object; `None`: it has yet to read it.
    Answers(Vec<Option<ReplicaAnswers>>),
    /// It is of a version that cannot be asked.
    Older,
    /// It does not answer, or not as it should: why.
    Silent(String),
}

/// Asks all replicas at once what became of these objects.
pub(super) async fn ask(replicas: Vec<Replica>, of: &Arc<[Generation]>) -> Vec<(Replica, Reply)> {
    let mut asked = JoinSet::new();
    for replica in replicas {
        let of = of.clone();
        asked.spawn(async move {
            let reply = match tokio::time::timeout(PATIENCE, ask_one(&replica, &of)).await {
                Ok(reply) => reply,
                Err(_) => Reply::Silent(format!("nothing within {PATIENCE:?}")),
            };
            (replica, reply)
        });
    }
    let mut replies = asked.join_all().await;
    replies.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    replies
}

/// What to say of a replica that does not answer though sidecars are sent to it.
pub(super) fn silence(replies: &[(Replica, Reply)]) -> Option<Diagnostic> {
    let silent = replies.iter().filter(|(replica, _)| replica.ready).find_map(|(replica, reply)| match reply {
        Reply::Silent(why) => Some((replica, why)),
        Reply::Answers(_) | Reply::Older => None,
    });
    silent.map(|(Replica { name, addresses, .. }, why)| {
        let at = addresses.first().map(ToString::to_string).unwrap_or_default();
        let reason =
            format!("replica {name} does not answer at {at}, so that nobody knows what its proxies have: {why}");
        let help = "see whether it runs, and that replicas may reach this port (NetworkPolicy weft); it is asked again";
        Diagnostic::warning("", reason, help)
    })
}

async fn ask_one(replica: &Replica, of: &[Generation]) -> Reply {
    let addresses = replica.addresses.clone();
    let connector = tower::service_fn(move |_| {
        let addresses = addresses.clone();
        async move { TcpStream::connect(&*addresses).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://weft.weft-system.svc:15014");
    let channel = match endpoint.connect_with_connector(connector).await {
        Ok(channel) => channel,
        Err(error) => return Reply::Silent(innermost(&error)),
    };
    let mut client = InspectionClient::new(channel).max_decoding_message_size(ANSWER);
    let mut all = Vec::new();
    for some in of.chunks(AT_A_TIME) {
        match client.list_answers(answers::request(some)).await {
            Ok(answer) => all.extend(answer.into_inner().objects.into_iter().map(answers::read)),
            Err(status) if status.code() == Code::Unimplemented => return Reply::Older,
            Err(status) => return Reply::Silent(status.message().to_owned()),
        }
    }
    match all.len() == of.len() {
        true => Reply::Answers(all),
        false => Reply::Silent(format!("it tells of {} objects of {}", all.len(), of.len())),
    }
}

/// The cause that says most.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::net::TcpListener;

    use super::*;
    use crate::inspect::answers::Generations;
    use crate::inspect::serve_answers;
    use crate::mesh::object::Endpoint;
    use crate::mesh::{Kind, ObjectRef, PodKey, ServiceKey};

    #[test]
    fn replicas_are_the_pods_behind_the_service() {
        let endpoint = |ip: &str, pod: Option<&str>, ready, terminating| Endpoint {
            ip: ip.parse().unwrap(),
            ready,
            terminating,
            pod: pod.map(|pod| PodKey::new("weft-system", pod)),
            zone: None,
        };
        let slice = |name: &str, port: &str, endpoints| EndpointSlice {
            name: name.into(),
            service: ServiceKey::new("weft-system", SERVICE),
            ports: [(port.to_owned(), 15014)].into(),
            endpoints,
        };
        let slices = [
            slice(
                "v4",
                PORT,
                vec![
                    endpoint("10.244.0.8", Some("weft-b"), true, true),
                    endpoint("10.244.0.7", Some("weft-a"), true, false),
                    endpoint("10.244.0.9", None, true, false),
                ],
            ),
            slice("v6", PORT, vec![endpoint("fd00::7", Some("weft-a"), true, false)]),
            slice("other", "tls-xds", vec![endpoint("10.244.0.10", Some("weft-c"), true, false)]),
        ];
        let all = Replica::all(slices.iter());
        let all: Vec<_> = all.iter().map(|one| (&*one.name, one.addresses.len(), one.ready)).collect();
        assert_eq!(all, [("weft-a", 2, true), ("weft-b", 1, false)]);
    }

    /// Has read all generations but the odd ones.
    struct Even(Mutex<usize>);

    impl Generations for Even {
        fn answers(&self, of: &[Generation]) -> Vec<Option<ReplicaAnswers>> {
            *self.0.lock().unwrap() += 1;
            of.iter().map(|of| (of.generation % 2 == 0).then(|| answers(of.generation))).collect()
        }
    }

    fn answers(proxies: i64) -> ReplicaAnswers {
        let pod = |number: u32| crate::mesh::ProxyId(PodKey::new("shop", format!("cart-{number}")));
        let answers = crate::xds::status::Answers {
            proxies: proxies as u64,
            pending: 2,
            pending_proxies: vec![pod(1), pod(2)],
            took: Some(Duration::from_millis(12)),
            ..Default::default()
        };
        ReplicaAnswers { answers, changed: true }
    }

    #[tokio::test]
    async fn all_are_asked_at_once_and_each_says_what_it_can() {
        let asked = Arc::new(Even(Mutex::new(0)));
        let (newer, older) = (serve_answers(Some(asked.clone())).await, serve_answers(None).await);
        let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let replica = |name: &str, addresses: &[SocketAddr]| Replica {
            name: name.into(),
            addresses: addresses.to_vec(),
            ready: true,
        };
        // An address of a family that it does not listen on costs nothing.
        let replicas = vec![
            replica("older", &[older]),
            replica("gone", &[gone]),
            replica("newer", &[gone, newer]),
            replica("hangs", &[hangs.local_addr().unwrap()]),
        ];
        let object =
            |name: String| ObjectRef { kind: Kind::TrafficPolicy, namespace: Some("shop".into()), name: name.into() };
        let count = AT_A_TIME as i64 + 2;
        let of: Arc<[Generation]> = (0..count)
            .map(|generation| Generation { object: object(format!("p-{generation}")), uid: "u".into(), generation })
            .collect();
        let began = std::time::Instant::now();
        let replies = ask(replicas, &of).await;
        assert!(began.elapsed() < PATIENCE * 2, "at once: {:?}", began.elapsed());
        let of_name = |name: &str| replies.iter().find(|(one, _)| &*one.name == name).map(|(_, reply)| reply).unwrap();
        let expected = (0..count).map(|generation| (generation % 2 == 0).then(|| answers(generation)));
        assert_eq!(*of_name("newer"), Reply::Answers(expected.collect()));
        assert_eq!(*asked.0.lock().unwrap(), 2, "some at a time");
        assert_eq!(*of_name("older"), Reply::Older);
        let Reply::Silent(why) = of_name("gone") else { panic!("{replies:?}") };
        assert!(why.contains("refused"), "{why}");
        assert_eq!(*of_name("hangs"), Reply::Silent("nothing within 1s".to_owned()));
    }
}
