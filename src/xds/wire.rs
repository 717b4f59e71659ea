//! Encoded frames: a response becomes bytes once, and the gRPC codec passes bytes through.
//!
//! The messages are Envoy's (`envoy.service.discovery.v3`), with the resources' contents as the shared bytes that
//! they are in the snapshot instead of as vectors of their own.

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::session::{Protocol, Response};

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct DeltaResource {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(message, optional, tag = "2")]
    resource: Option<Any>,
    #[prost(string, tag = "3")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<DeltaResource>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
    #[prost(string, repeated, tag = "6")]
    removed_resources: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    version_info: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Any>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

/// Encodes `response` as the message of `protocol`.
pub fn encode(protocol: Protocol, response: Response) -> Bytes {
    let type_url = response.type_url.into_owned();
    let any = |body: &Bytes| Any { type_url: type_url.clone(), value: body.clone() };
    match protocol {
        Protocol::Delta => {
            let resources = response.resources.iter().map(|resource| DeltaResource {
                version: resource.version.to_string(),
                resource: Some(any(&resource.body)),
                name: resource.name.to_string(),
            });
            let message = DeltaDiscoveryResponse {
                system_version_info: response.number.to_string(),
                resources: resources.collect(),
                nonce: response.nonce,
                removed_resources: response.removed.iter().map(|name| name.to_string()).collect(),
                type_url: type_url.clone(),
            };
            message.encode_to_vec().into()
        }
        Protocol::StateOfTheWorld => {
            let message = DiscoveryResponse {
                version_info: response.number.to_string(),
                resources: response.resources.iter().map(|resource| any(&resource.body)).collect(),
                nonce: response.nonce,
                type_url: type_url.clone(),
            };
            message.encode_to_vec().into()
        }
    }
}

/// Decodes requests `R` and takes responses that are encoded already.
pub(crate) struct FrameCodec<R>(PhantomData<R>);

impl<R> Default for FrameCodec<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R: Message + Default + Send + 'static> Codec for FrameCodec<R> {
    type Encode = Bytes;
    type Decode = R;
    type Encoder = FrameEncoder;
    type Decoder = RequestDecoder<R>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> RequestDecoder<R> {
        RequestDecoder(PhantomData)
    }
}

pub(crate) struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(frame);
        Ok(())
    }
}

pub(crate) struct RequestDecoder<R>(PhantomData<R>);

impl<R: Message + Default> Decoder for RequestDecoder<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        let invalid = |error| Status::invalid_argument(format!("the request is no discovery request: {error}"));
        R::decode(buffer).map(Some).map_err(invalid)
    }
}
