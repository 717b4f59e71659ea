use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use futures::{FutureExt, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use super::*;

type Chunks = mpsc::UnboundedSender<Bytes>;

fn requests(rate: Rate) -> (Chunks, Requests<DeltaDiscoveryRequest>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let chunks = UnboundedReceiverStream::new(receiver).map(|chunk| Ok::<_, Status>(Frame::data(chunk)));
    (sender, Requests::new(Body::new(StreamBody::new(chunks)), rate))
}

fn framed(nonce: &str) -> Vec<u8> {
    let message = DeltaDiscoveryRequest { response_nonce: nonce.into(), ..Default::default() }.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

#[tokio::test]
async fn requests_come_out_however_they_are_cut() {
    let bytes = [framed("one"), framed(""), framed("three")].concat();
    for size in 1..=bytes.len() {
        let (sender, mut requests) = requests(Rate::default());
        bytes.chunks(size).for_each(|chunk| sender.send(Bytes::copy_from_slice(chunk)).expect("open"));
        drop(sender);
        for nonce in ["one", "", "three"] {
            let request = requests.message().await.expect("no error").expect("a request");
            assert_eq!(request.response_nonce, nonce, "in chunks of {size}");
        }
        assert!(requests.message().await.expect("no error").is_none());
        assert_eq!(requests.buffer.capacity(), 0, "nothing is kept between requests");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let rows: [(&str, Vec<u8>, Code); 5] = [
        ("compressed", vec![1, 0, 0, 0, 0], Code::Unimplemented),
        ("no such flag", vec![7, 0, 0, 0, 0], Code::Unimplemented),
        ("too large, before it is there", [&[0][..], &(5u32 << 20).to_be_bytes()].concat(), Code::OutOfRange),
        ("not protobuf", vec![0, 0, 0, 0, 2, 0xff, 0xff], Code::InvalidArgument),
        ("cut off", vec![0, 0, 0, 0, 2, 0xff], Code::Internal),
    ];
    for (row, bytes, code) in rows {
        let (sender, mut requests) = requests(Rate::default());
        sender.send(bytes.into()).expect("open");
        drop(sender);
        assert_eq!(requests.message().await.expect_err(row).code(), code, "{row}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_is_read_at_its_rate_after_a_burst() {
    let (sender, mut requests) = requests(Rate { per_second: 10, burst: 20 });
    for _ in 0..1_000 {
        sender.send(framed("x").into()).expect("open");
    }
    let start = Instant::now();
    let mut taken = 0;
    while let Some(request) = requests.message().now_or_never() {
        request.expect("no error").expect("a request");
        taken += 1;
    }
    assert_eq!(taken, 21, "the burst, and the one that is not paid for yet");
    for _ in 0..100 {
        requests.message().await.expect("no error").expect("a request");
    }
    let took = start.elapsed();
    assert!((9_900..10_100).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_large_request_counts_more() {
    let (sender, mut requests) = requests(Rate { per_second: 10, burst: 1 });
    sender.send(framed(&"x".repeat(1_600 << 10)).into()).expect("open");
    sender.send(framed("x").into()).expect("open");
    let start = Instant::now();
    requests.message().await.expect("no error").expect("a request");
    assert_eq!(start.elapsed(), Duration::ZERO);
    requests.message().await.expect("no error").expect("a request");
    assert_eq!(start.elapsed().as_secs(), 10);
}
