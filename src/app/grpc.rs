//! The gRPC face: Echo, with the workload's delay and errors.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::{Request, Response, Status, Streaming};

use super::RESPONDER_HEADER;
use super::proto::echo_server::Echo;
use super::proto::{EchoRequest, EchoResponse};
use super::workload::{Workload, shown};

/// How many answers a stream gives at most.
const MAX_COUNT: u32 = 10_000;

type Answers = Pin<Box<dyn Stream<Item = Result<EchoResponse, Status>> + Send>>;

pub(super) struct EchoService(pub(super) Arc<Workload>);

#[tonic::async_trait]
impl Echo for EchoService {
    type EchoStreamStream = Answers;
    type EchoChatStream = Answers;

    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let headers = shown(request.metadata().as_ref());
        let answer = answer(&self.0, &headers, &request.get_ref().message, 1).await?;
        Ok(self.named(answer))
    }

    async fn echo_stream(&self, request: Request<EchoRequest>) -> Result<Response<Self::EchoStreamStream>, Status> {
        let headers = Arc::new(shown(request.metadata().as_ref()));
        let EchoRequest { message, count } = request.into_inner();
        if count > MAX_COUNT {
            return Err(Status::invalid_argument(format!("count is {count}: at most {MAX_COUNT} answers are given")));
        }
        let (workload, message) = (self.0.clone(), Arc::new(message));
        let answers = futures::stream::iter(1..=count.max(1)).then(move |sequence| {
            let (workload, headers, message) = (workload.clone(), headers.clone(), message.clone());
            async move { answer(&workload, &headers, &message, sequence).await }
        });
        Ok(self.named(answers.boxed()))
    }

    async fn echo_chat(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Self::EchoChatStream>, Status> {
        let headers = Arc::new(shown(request.metadata().as_ref()));
        let workload = self.0.clone();
        let answers = request.into_inner().zip(futures::stream::iter(1..)).then(move |(asked, sequence)| {
            let (workload, headers) = (workload.clone(), headers.clone());
            async move { answer(&workload, &headers, &asked?.message, sequence).await }
        });
        Ok(self.named(answers.boxed()))
    }
}

impl EchoService {
    fn named<T>(&self, message: T) -> Response<T> {
        Response::from_parts(responder(&self.0), message, tonic::Extensions::default())
    }
}

async fn answer(
    workload: &Workload,
    headers: &BTreeMap<String, String>,
    message: &str,
    sequence: u32,
) -> Result<EchoResponse, Status> {
    if workload.act(None).await {
        let mut status = Status::unavailable("failed on purpose: the error rate says so");
        *status.metadata_mut() = responder(workload);
        return Err(status);
    }
    Ok(EchoResponse {
        name: workload.identity.name.clone(),
        version: workload.identity.version.clone(),
        pod: workload.identity.pod.clone(),
        message: message.to_owned(),
        headers: headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        sequence,
    })
}

/// Metadata that names the workload; without it where the name is no header value.
fn responder(workload: &Workload) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    if let Ok(value) = workload.identity.responder().parse() {
        metadata.insert(AsciiMetadataKey::from_static(RESPONDER_HEADER), value);
    }
    metadata
}
