//! The messages, server and client that are generated from proto/weft/inspect/v1/inspect.proto.

#![allow(missing_docs, reason = "generated from the .proto file, which documents it")]
#![allow(unreachable_pub, reason = "as above")]
#![allow(clippy::all, reason = "as above")]

tonic::include_proto!("weft.inspect.v1");
