//! Encoded frames: a response becomes bytes once, in the form in which HTTP/2 sends them.
//!
//! The messages are Envoy's (`envoy.service.discovery.v3`), with the resources' contents as the shared bytes that
//! they are in the snapshot instead of as vectors of their own.

use bytes::Bytes;
use prost::Message;

use super::requests::PREFIX;
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

/// Encodes `response` as the message of `protocol`, in one piece with the prefix that gRPC puts before it.
pub fn encode(protocol: Protocol, response: &Response) -> Bytes {
    let type_url = &*response.type_url;
    let any = |body: &Bytes| Any { type_url: type_url.to_owned(), value: body.clone() };
    match protocol {
        Protocol::Delta => {
            let resources = response.resources.iter().map(|resource| DeltaResource {
                version: resource.version.to_string(),
                resource: Some(any(resource.body_for(response.generation))),
                name: resource.name.to_string(),
            });
            framed(&DeltaDiscoveryResponse {
                system_version_info: response.number.to_string(),
                resources: resources.collect(),
                nonce: response.nonce.clone(),
                removed_resources: response.removed.iter().map(|name| name.to_string()).collect(),
                type_url: type_url.to_owned(),
            })
        }
        Protocol::StateOfTheWorld => framed(&DiscoveryResponse {
            version_info: response.number.to_string(),
            resources: response.resources.iter().map(|resource| any(resource.body_for(response.generation))).collect(),
            nonce: response.nonce.clone(),
            type_url: type_url.to_owned(),
        }),
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = Vec::with_capacity(PREFIX + length);
    frame.push(0); // not compressed
    // gRPC has no way to say more than 4 GiB: the client would end the stream.
    frame.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // Fails only where there is no room, and a vector has it.
    let _ = message.encode(&mut frame);
    frame.into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::service::discovery::v3 as envoy;

    use super::*;
    use crate::snapshot::ResourceType::{Cluster, Route};
    use crate::snapshot::{Generation, Resource};
    use crate::xds::testing::resource;

    fn response(content: u8) -> Response {
        let resources = vec![resource(Cluster, "a", content), resource(Cluster, "b", 1)];
        let type_url = Cluster.type_url().into();
        let removed = vec!["gone".into()];
        Response {
            type_url,
            nonce: "7.1".into(),
            number: 7,
            generation: Generation::Current,
            resources: resources.into(),
            removed,
        }
    }

    fn delta(content: u8) -> envoy::DeltaDiscoveryResponse {
        let frame = encode(Protocol::Delta, &response(content));
        Message::decode(&frame[PREFIX..]).expect("Envoy's message")
    }

    fn state_of_the_world(content: u8) -> envoy::DiscoveryResponse {
        let frame = encode(Protocol::StateOfTheWorld, &response(content));
        Message::decode(&frame[PREFIX..]).expect("Envoy's message")
    }

    #[test]
    fn rule_21_every_resource_has_its_name_and_a_version_by_its_content() {
        let versions = |content| -> Vec<_> {
            let named = |resource: envoy::Resource| {
                assert!(!resource.name.is_empty() && !resource.version.is_empty(), "{resource:?}");
                (resource.name, resource.version)
            };
            delta(content).resources.into_iter().map(named).collect()
        };
        let (one, two) = (versions(1), versions(2));
        assert_eq!(one, versions(1), "the same on every replica");
        assert_ne!(one[0], two[0]);
        assert_eq!(one[1], two[1]);
        assert_eq!(resource(Cluster, "a", 1).version, resource(Route, "b", 1).version, "the content alone decides");
    }

    #[test]
    fn an_older_envoy_is_sent_what_it_can_load_under_the_same_version() {
        let new = Resource::new(Cluster, "a", Bytes::from_static(b"new"), None);
        let both = Arc::new(new.clone().for_older(Bytes::from_static(b"old")));
        assert_ne!(both.version, new.version);
        for (generation, body) in [(Generation::Current, "new"), (Generation::Older, "old")] {
            let response = Response { generation, resources: [both.clone()].into(), ..response(1) };
            let frame = encode(Protocol::Delta, &response);
            let delta: envoy::DeltaDiscoveryResponse = Message::decode(&frame[PREFIX..]).expect("Envoy's message");
            let sent = &delta.resources[0];
            assert_eq!(sent.version, both.version.to_string());
            assert_eq!(sent.resource.as_ref().map(|any| &*any.value), Some(body.as_bytes()));
        }
    }

    #[test]
    fn rule_24_the_snapshots_number_is_told_for_reading_only() {
        assert_eq!((delta(1).system_version_info.as_str(), delta(1).nonce.as_str()), ("7", "7.1"));
        assert_eq!((state_of_the_world(1).version_info.as_str(), state_of_the_world(1).nonce.as_str()), ("7", "7.1"));
    }

    #[test]
    fn rule_37_no_time_to_live_is_given_and_so_no_heartbeat_is_owed() {
        assert!(delta(1).resources.iter().all(|resource| resource.ttl.is_none()));
        // In state of the world, a time to live takes a wrapper around the resource.
        assert!(state_of_the_world(1).resources.iter().all(|any| any.type_url == Cluster.type_url()));
    }
}
