//! The server as a client sees it that behaves badly, or that is old: raw HTTP/2.

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::*;
use crate::snapshot::ResourceType::{Cluster, Listener};
use crate::snapshot::{Change, Resource, Snapshot};
use crate::xds::Limits;
use crate::xds::requests::Rate;
use crate::xds::status::Proxies;
use crate::xds::testing::*;

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

struct Rig {
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    server: Server,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let (snapshots, receiver) = watch::channel(Some(Arc::new(Snapshot::empty().with([eager()]))));
        let server = Server::new(receiver, Arc::new(TestTokens), TestSecrets::new(), CancellationToken::new());
        Self { snapshots, server: server.limit(limits) }
    }

    fn publish(&self, changes: impl IntoIterator<Item = Change>) {
        let current = self.snapshots.borrow().clone().expect("a first snapshot");
        self.snapshots.send_replace(Some(Arc::new(current.with(changes))));
    }

    async fn place(&self) -> Arc<Place> {
        let room = self.server.admission().room().await.expect("room");
        self.server.admission().connection(room).expect("a place")
    }

    /// A client in memory, so that time can stand still.
    async fn connect(&self) -> Client {
        let (near, far) = tokio::io::duplex(1 << 20);
        let place = self.place().await;
        let served = tokio::spawn(http2(self.server.clone(), far, "test".into(), place.clone()));
        let (requests, connection) = h2::client::handshake::<DuplexStream>(near).await.expect("HTTP/2");
        tokio::spawn(connection);
        Client { requests, place, served }
    }
}

struct Client {
    requests: SendRequest<Bytes>,
    place: Arc<Place>,
    served: JoinHandle<()>,
}

fn call(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://weft{path}"))
        .header("content-type", "application/grpc")
        .header("authorization", "Bearer good")
}

impl Client {
    async fn stream(&self) -> Stream {
        let mut requests = self.requests.clone().ready().await.expect("an open connection");
        let (response, sender) = requests.send_request(call(DELTA).body(()).expect("a call"), false).expect("sent");
        let mut stream = Stream { sender, receiver: None, buffer: BytesMut::new() };
        stream.send(&DeltaDiscoveryRequest {
            node: Some(Node { id: proxy().to_string(), ..Default::default() }),
            type_url: Cluster.type_url().into(),
            ..Default::default()
        });
        stream.receiver = Some(response.await.expect("a response").into_body());
        stream
    }
}

struct Stream {
    sender: SendStream<Bytes>,
    receiver: Option<RecvStream>,
    buffer: BytesMut,
}

fn framed(request: &DeltaDiscoveryRequest) -> Bytes {
    let message = request.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
}

impl Stream {
    fn send(&mut self, request: &DeltaDiscoveryRequest) {
        self.sender.send_data(framed(request), false).expect("an open stream");
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        self.send(&DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() });
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let receiver = self.receiver.as_mut().expect("a response");
        loop {
            if let Some((prefix, rest)) = self.buffer.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                if rest.len() >= length {
                    let message = self.buffer.split_to(5 + length).split_off(5);
                    return DeltaDiscoveryResponse::decode(message).expect("a response");
                }
            }
            let data = receiver.data().await.expect("the stream goes on").expect("no error");
            receiver.flow_control().release_capacity(data.len()).expect("an open stream");
            self.buffer.extend_from_slice(&data);
        }
    }

    /// The status that the stream ends with.
    async fn status(&mut self) -> Code {
        let receiver = self.receiver.as_mut().expect("a response");
        assert!(receiver.data().await.is_none(), "it says more");
        let trailers = receiver.trailers().await.expect("no error").expect("trailers");
        Code::from_bytes(trailers["grpc-status"].as_bytes())
    }
}

fn limits() -> Limits {
    Limits { age: None, ..Limits::default() }
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_ends_when_what_is_on_its_way_is_acknowledged() {
    let rig = Rig::new(Limits { age: Some(Duration::from_secs(100)), ..limits() });
    rig.publish([put(Cluster, "a", 1)]);
    let client = rig.connect().await;
    let start = Instant::now();
    let mut stream = client.stream().await;
    let response = stream.next().await;
    client.place.drain.cancelled().await;
    assert!((50..150).contains(&start.elapsed().as_secs()));
    let drained = Instant::now();
    let refused = tokio::time::timeout(rig.server.limits().grace / 2, stream.status()).await;
    assert!(refused.is_err(), "it waits for the acknowledgement");
    assert!(client.requests.clone().ready().await.is_err(), "GOAWAY: the next stream takes another connection");
    stream.ack(&response);
    assert_eq!(stream.status().await, Code::Ok);
    assert!(drained.elapsed() < rig.server.limits().grace);
    client.served.await.expect("no panic");
    drop((stream, client.place));
    let counts = rig.server.counts()();
    assert_eq!((counts.aged, counts.admitted, counts.refused), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_old_connection_ends_after_a_while_in_any_case() {
    let rig = Rig::new(Limits { age: Some(Duration::from_secs(100)), ..limits() });
    rig.publish([put(Cluster, "a", 1)]);
    let client = rig.connect().await;
    let mut stream = client.stream().await;
    stream.next().await;
    client.place.drain.cancelled().await;
    let drained = Instant::now();
    assert_eq!(stream.status().await, Code::Ok);
    assert_eq!(drained.elapsed().as_secs(), rig.server.limits().grace.as_secs());
}

#[tokio::test(start_paused = true)]
async fn who_shows_no_token_is_disconnected() {
    let rig = Rig::new(limits());
    let client = rig.connect().await;
    client.served.await.expect("no panic");
    assert_eq!(rig.server.counts()().refused, 1);
    let known = rig.connect().await;
    let _stream = known.stream().await;
    tokio::time::sleep(10 * INTRODUCTION).await;
    assert!(!known.served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_requests_is_stopped_by_the_window_and_delays_nobody() {
    let rig = Rig::new(Limits { requests: Rate { per_second: 1, burst: 50 }, ..limits() });
    let (flooding, other) = (rig.connect().await, rig.connect().await);
    let mut flood = flooding.stream().await;
    let mut stream = other.stream().await;
    let answer = stream.next().await;
    stream.ack(&answer);
    let request = framed(&DeltaDiscoveryRequest {
        type_url: Listener.type_url().into(),
        response_nonce: "x".repeat(500),
        ..Default::default()
    });
    let mut taken = 0;
    // Until nothing more is taken in half a second: time passes only when nobody has anything to do.
    while flood.sender.capacity() >= request.len() || {
        flood.sender.reserve_capacity(request.len());
        let room = std::future::poll_fn(|context| flood.sender.poll_capacity(context));
        tokio::time::timeout(Duration::from_millis(500), room).await.is_ok()
    } {
        if flood.sender.capacity() >= request.len() {
            flood.sender.send_data(request.clone(), false).expect("an open stream");
            taken += request.len();
        }
    }
    assert!(taken <= WINDOW as usize + 64 * request.len(), "{taken} bytes");
    rig.publish([put(Cluster, "a", 1)]);
    let start = Instant::now();
    let change = stream.next().await;
    assert_eq!((change.resources.len(), start.elapsed()), (1, Duration::ZERO));
}

#[tokio::test]
async fn a_client_that_never_reads_costs_a_few_shared_frames() {
    let rig = Rig::new(limits());
    let large = |content: u8| {
        Change::Put(Arc::new(Resource::new(Cluster, "large", Bytes::from(vec![content; 300 << 10]), None)))
    };
    rig.publish([large(0)]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let place = rig.place().await;
        let far = accepted.expect("a connection").0;
        let served = tokio::spawn(http2(rig.server.clone(), far, "test".into(), place.clone()));
        let (requests, connection) = h2::client::handshake(near.expect("connected")).await.expect("HTTP/2");
        tokio::spawn(connection);
        clients.push(Client { requests, place, served });
    }
    let _stalled = clients[0].stream().await;
    let mut healthy = clients[1].stream().await;
    for content in 1..50 {
        let response = healthy.next().await;
        healthy.ack(&response);
        rig.publish([large(content)]);
    }
    let last = healthy.next().await;
    assert_eq!(last.resources[0].resource.as_ref().expect("a body").value[0], 49);
    // In HTTP/2's buffer, in hyper, in the channel: handles to what the other stream was sent, most likely.
    let stalled = rig.server.registry().totals()[&Cluster].sent - 50;
    assert!((1..=3).contains(&stalled), "{stalled} frames");
    let counts = rig.server.counts()();
    assert_eq!(counts.frames_encoded + counts.frames_shared, 50 + stalled);
    assert!(counts.frames_shared >= 1);
}

#[tokio::test]
async fn calls_that_are_none_of_ours_are_answered() {
    let rig = Rig::new(limits());
    let client = rig.connect().await;
    let rows = [
        ("an unknown path", call("/some.Service/Call"), 200, Some(Code::Unimplemented)),
        ("the root", call("/"), 200, Some(Code::Unimplemented)),
        ("compressed", call(DELTA).header("grpc-encoding", "gzip"), 200, Some(Code::Unimplemented)),
        ("no token", http::Request::post("http://weft").header("content-type", "application/grpc"), 200, None),
        ("not gRPC", http::Request::get("http://weft/"), 415, None),
        ("another content", http::Request::post(format!("http://weft{DELTA}")).header("content-type", "x"), 415, None),
    ];
    for (row, call, http_status, code) in rows {
        let mut requests = client.requests.clone().ready().await.expect("an open connection");
        let (response, _) = requests.send_request(call.body(()).expect("a call"), true).expect("sent");
        let response = response.await.expect(row);
        assert_eq!(response.status(), http_status, "{row}");
        if let Some(code) = code {
            assert_eq!(Code::from_bytes(response.headers()["grpc-status"].as_bytes()), code, "{row}");
        }
    }
}
