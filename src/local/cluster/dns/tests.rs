//! Real queries over loopback, from a client that knows nothing of the zone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Query};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::*;

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).expect("a Service")
}

fn zone() -> Zone {
    let services = [
        service("cart", json!({"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80}]})),
        service("six", json!({"clusterIP": "fd00::1", "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("none", json!({"clusterIP": "None"})),
        service("alias", json!({"type": "ExternalName", "externalName": "cart.shop.svc.cluster.local."})),
        service("away", json!({"type": "ExternalName", "externalName": "example.org"})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"})),
    ];
    let endpoints = json!([
        {"addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.3"]},
        {"addresses": ["10.244.0.4"], "conditions": {"ready": false}},
    ]);
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": endpoints,
    }))
    .expect("an EndpointSlice");
    let hosts = [("api.example.com", 2), ("*.example.com", 3)];
    let hosts = hosts.map(|(host, last)| (host.to_owned(), Ipv4Addr::new(203, 0, 113, last).into()));
    Zone::new(&services, [&slice], [("shop", Ipv4Addr::new(10, 244, 0, 2))], hosts)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

/// `CODE: data, …; authority`, each kind of record in its own words.
fn show(response: &Message) -> String {
    let show = |records: &[Record]| {
        let mut shown: Vec<_> = records.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
        shown.sort();
        shown.join(", ")
    };
    let authority = response.authorities.iter().map(|r| r.record_type().to_string()).collect::<String>();
    format!("{:?}: {}; {authority}", response.metadata.response_code, show(&response.answers))
}

struct Client {
    udp: SocketAddr,
    tcp: SocketAddr,
}

impl Client {
    async fn start(zone: Arc<ArcSwap<Zone>>, forwarder: Option<SocketAddr>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(any, any, zone, forwarder).await.expect("bound");
        let (udp, tcp) = server.addresses().expect("bound");
        tokio::spawn(server.run());
        Self { udp, tcp }
    }

    async fn raw(&self, query: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        socket.send_to(query, self.udp).await.expect("sent");
        let mut buffer = vec![0; 65535];
        let length = socket.recv(&mut buffer).await.expect("an answer");
        buffer.truncate(length);
        buffer
    }

    async fn udp(&self, query: &Message) -> Message {
        Message::from_vec(&self.raw(&query.to_vec().expect("encoded")).await).expect("a message")
    }

    async fn tcp(&self, query: &Message) -> Message {
        let mut stream = TcpStream::connect(self.tcp).await.expect("connected");
        let bytes = query.to_vec().expect("encoded");
        stream.write_u16(bytes.len().try_into().expect("short")).await.expect("sent");
        stream.write_all(&bytes).await.expect("sent");
        let mut answer = vec![0; usize::from(stream.read_u16().await.expect("an answer"))];
        stream.read_exact(&mut answer).await.expect("all of it");
        Message::from_vec(&answer).expect("a message")
    }
}

#[tokio::test]
async fn names_answer_as_in_kubernetes() {
    use RecordType::{A, AAAA, CNAME, PTR, SRV};
    let client = Client::start(Arc::new(ArcSwap::from_pointee(zone())), None).await;
    for (name, kind, expected) in [
        ("cart.shop.svc.cluster.local.", A, "NoError: A 10.96.1.1; "),
        ("CART.shop.SVC.cluster.local.", A, "NoError: A 10.96.1.1; "),
        ("cart.shop.svc.cluster.local.", AAAA, "NoError: ; SOA"),
        ("six.shop.svc.cluster.local.", AAAA, "NoError: AAAA fd00::1; "),
        ("db.shop.svc.cluster.local.", A, "NoError: A 10.244.0.2, A 10.244.0.3; "),
        ("db-0.db.shop.svc.cluster.local.", A, "NoError: A 10.244.0.2; "),
        ("10-244-0-3.db.shop.svc.cluster.local.", A, "NoError: A 10.244.0.3; "),
        ("10-244-0-4.db.shop.svc.cluster.local.", A, "NXDomain: ; SOA"),
        ("none.shop.svc.cluster.local.", A, "NoError: ; SOA"),
        ("10-244-0-2.shop.pod.cluster.local.", A, "NoError: A 10.244.0.2; "),
        ("10-244-0-9.shop.pod.cluster.local.", A, "NXDomain: ; SOA"),
        ("_http._tcp.cart.shop.svc.cluster.local.", SRV, "NoError: SRV 0 100 80 cart.shop.svc.cluster.local.; "),
        (
            "_sql._tcp.db.shop.svc.cluster.local.",
            SRV,
            "NoError: SRV 0 100 5432 10-244-0-3.db.shop.svc.cluster.local., \
             SRV 0 100 5432 db-0.db.shop.svc.cluster.local.; ",
        ),
        ("alias.shop.svc.cluster.local.", A, "NoError: A 10.96.1.1, CNAME cart.shop.svc.cluster.local.; "),
        ("alias.shop.svc.cluster.local.", CNAME, "NoError: CNAME cart.shop.svc.cluster.local.; "),
        ("away.shop.svc.cluster.local.", A, "NoError: CNAME example.org.; "),
        ("1.1.96.10.in-addr.arpa.", PTR, "NoError: PTR cart.shop.svc.cluster.local.; "),
        ("2.0.244.10.in-addr.arpa.", PTR, "NoError: PTR db-0.db.shop.svc.cluster.local.; "),
        ("9.9.244.10.in-addr.arpa.", PTR, "NXDomain: ; SOA"),
        ("9.9.9.9.in-addr.arpa.", PTR, "NXDomain: ; "),
        ("shop.svc.cluster.local.", A, "NoError: ; SOA"),
        ("nobody.shop.svc.cluster.local.", A, "NXDomain: ; SOA"),
        ("cart.shop.svc.cluster.local.shop.svc.cluster.local.", A, "NXDomain: ; SOA"),
        ("example.org.", A, "NXDomain: ; "),
        ("api.example.com.", A, "NoError: A 203.0.113.2; "),
        ("www.a.Example.com.", A, "NoError: A 203.0.113.3; "),
        ("example.com.", A, "NXDomain: ; "),
        ("notcluster.local.", A, "NXDomain: ; "),
    ] {
        let query = query(name, kind);
        let answer = client.udp(&query).await;
        assert_eq!(show(&answer), expected, "{name} {kind}");
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(answer, client.tcp(&query).await, "{name} {kind} over TCP");
    }
    let srv = client.udp(&query("_sql._tcp.db.shop.svc.cluster.local.", SRV)).await;
    assert_eq!(srv.additionals.len(), 2);
    let looping = client.udp(&query("loop.shop.svc.cluster.local.", A)).await;
    assert_eq!(looping.answers.len(), MOST_ALIASES);
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_comes_over_tcp() {
    let endpoints: Vec<_> = (2..200).map(|i| json!({"addresses": [format!("10.244.1.{i}")]})).collect();
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "endpoints": endpoints,
    }))
    .expect("an EndpointSlice");
    let zone = Zone::new(&[service("db", json!({"clusterIP": "None"}))], [&slice], [], []);
    let client = Client::start(Arc::new(ArcSwap::from_pointee(zone)), None).await;
    let mut query = query("db.shop.svc.cluster.local.", RecordType::A);
    let cut = client.udp(&query).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(client.tcp(&query).await.answers.len(), 198);
    let mut edns = Edns::new();
    edns.set_max_payload(8192);
    query.set_edns(edns);
    assert_eq!(client.udp(&query).await.answers.len(), 198);
}

#[tokio::test]
async fn a_new_zone_shows_at_once_and_rubbish_gets_no_answer() {
    let zones = Arc::new(ArcSwap::from_pointee(Zone::default()));
    let client = Client::start(zones.clone(), None).await;
    let query = query("cart.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(show(&client.udp(&query).await), "NXDomain: ; SOA");
    zones.store(Arc::new(zone()));
    assert_eq!(show(&client.udp(&query).await), "NoError: A 10.96.1.1; ");

    // The answer is to the query: neither rubbish nor a response was answered before it.
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let response = Message::response(1, OpCode::Query).to_vec().expect("encoded");
    for bytes in [b"rubbish".to_vec(), Vec::new(), response, query.to_vec().expect("encoded")] {
        socket.send_to(&bytes, client.udp).await.expect("sent");
    }
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.expect("an answer");
    assert_eq!(Message::from_vec(&buffer[..length]).expect("a message").metadata.id, query.metadata.id);
    let without_question = Message::query();
    assert_eq!(show(&client.udp(&without_question).await), "FormErr: ; ");
}

#[tokio::test]
async fn foreign_names_go_to_the_forwarder() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let client = Client::start(Arc::default(), Some(upstream.local_addr().expect("bound"))).await;
    let answers = async {
        let mut buffer = [0; 512];
        let (length, peer) = upstream.recv_from(&mut buffer).await.expect("a query");
        let mut answer = Message::from_vec(&buffer[..length]).expect("a message").into_response();
        answer.answers.extend(record("example.org", &Data::Address(Ipv4Addr::LOCALHOST.into()), RecordType::A));
        let mut forged = answer.clone();
        forged.metadata.id ^= 1;
        for message in [forged, answer] {
            upstream.send_to(&message.to_vec().expect("encoded"), peer).await.expect("sent");
        }
    };
    let query_away = query("example.org.", RecordType::A);
    let (answer, ()) = tokio::join!(client.udp(&query_away), answers);
    assert_eq!((show(&answer), answer.metadata.id), ("NoError: A 127.0.0.1; ".to_owned(), query_away.metadata.id));

    let closed = Client::start(Arc::default(), Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))).await;
    assert_eq!(show(&closed.udp(&query("example.org.", RecordType::A)).await), "ServFail: ; ");
    assert_eq!(show(&closed.tcp(&query("example.org.", RecordType::A)).await), "ServFail: ; ");
    assert_eq!(show(&closed.udp(&query("x.svc.cluster.local.", RecordType::A)).await), "NXDomain: ; SOA");
}
