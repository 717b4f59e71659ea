//! Discovery responses read where they lie, without decoding or copying a resource; and requests.

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

/// What is no protobuf message.
#[derive(Debug, thiserror::Error)]
#[error("the server sent what is no protobuf message: {0}")]
pub(crate) struct Malformed(String);

impl From<prost::DecodeError> for Malformed {
    fn from(error: prost::DecodeError) -> Self {
        Self(error.to_string())
    }
}

/// The length-delimited fields of a message, by number; others are skipped.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn field(&mut self) -> Result<Option<(u32, &'a [u8])>, Malformed> {
        let (number, wire) = decode_key(&mut self.0)?;
        let length = match wire {
            WireType::LengthDelimited => decode_varint(&mut self.0)?,
            WireType::Varint => {
                decode_varint(&mut self.0)?;
                return Ok(None);
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            _ => return Err(malformed("a group")),
        };
        let length = usize::try_from(length).map_err(|_| malformed("a length"))?;
        let (value, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("it ends within a field"))?;
        self.0 = rest;
        Ok((wire == WireType::LengthDelimited).then_some((number, value)))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            match self.field() {
                Ok(None) => {}
                Ok(Some(field)) => return Some(Ok(field)),
                Err(error) => {
                    self.0 = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// A `DeltaDiscoveryResponse` that borrows from the bytes that came.
pub(crate) struct DeltaResponse<'a> {
    message: &'a [u8],
    pub(crate) type_url: &'a str,
    pub(crate) nonce: &'a str,
}

impl<'a> DeltaResponse<'a> {
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let (mut type_url, mut nonce) = ("", "");
        for field in Fields::of(message) {
            match field? {
                (4, value) => type_url = text(value)?,
                (5, value) => nonce = text(value)?,
                _ => {}
            }
        }
        Ok(Self { message, type_url, nonce })
    }

    /// Each `Resource`, encoded.
    pub(crate) fn resources(&self) -> impl Iterator<Item = &'a [u8]> {
        self.with_number(2)
    }

    pub(crate) fn removed(&self) -> impl Iterator<Item = &'a str> {
        self.with_number(6).filter_map(|name| std::str::from_utf8(name).ok())
    }

    fn with_number(&self, wanted: u32) -> impl Iterator<Item = &'a [u8]> {
        // `read` has gone through all fields without an error.
        Fields::of(self.message).flatten().filter(move |(number, _)| *number == wanted).map(|(_, value)| value)
    }
}

/// One `Resource` of a delta response.
pub(crate) struct DeltaResource<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    /// `google.protobuf.Any.value`.
    pub(crate) body: &'a [u8],
}

impl<'a> DeltaResource<'a> {
    pub(crate) fn read(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut resource = Self { name: "", version: "", body: &[] };
        for field in Fields::of(message) {
            match field? {
                (1, value) => resource.version = text(value)?,
                (3, value) => resource.name = text(value)?,
                (2, any) => {
                    for field in Fields::of(any) {
                        if let (2, value) = field? {
                            resource.body = value;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(resource)
    }
}

fn malformed(what: &str) -> Malformed {
    Malformed(what.to_owned())
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| malformed("a text that is not UTF-8"))
}

/// A request as a gRPC message, length first.
pub(crate) fn frame(request: &DeltaDiscoveryRequest) -> Bytes {
    let length = request.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // The buffer has room for it, and that is all that can fail.
    let _ = request.encode(&mut frame);
    frame.freeze()
}

/// The gRPC messages of a stream, put together from the pieces that come.
#[derive(Default)]
pub(crate) struct Messages(BytesMut);

impl Messages {
    pub(crate) fn push(&mut self, piece: Bytes) {
        // What comes in one piece is not copied.
        if self.0.is_empty() {
            self.0 = BytesMut::from(piece);
        } else {
            self.0.extend_from_slice(&piece);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let header = self.0.first_chunk::<5>()?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if self.0.len() < 5 + length {
            self.0.reserve(5 + length - self.0.len());
            return None;
        }
        let mut message = self.0.split_to(5 + length);
        if self.0.is_empty() {
            self.0 = BytesMut::new(); // a quiet stream holds no buffer
        }
        Some(message.split_off(5).freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
    use envoy_types::pb::google::protobuf::Any;

    fn response() -> DeltaDiscoveryResponse {
        let resource = |name: &str| Resource {
            name: name.to_owned(),
            version: format!("version of {name}"),
            resource: Some(Any { type_url: "type".to_owned(), value: name.as_bytes().to_vec() }),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            system_version_info: "7".to_owned(),
            resources: vec![resource("one"), resource("two")],
            type_url: "type".to_owned(),
            removed_resources: vec!["three".to_owned()],
            nonce: "n".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_response_is_read_where_it_lies() {
        let bytes = response().encode_to_vec();
        let read = DeltaResponse::read(&bytes).expect("a response");
        assert_eq!((read.type_url, read.nonce), ("type", "n"));
        assert_eq!(Vec::from_iter(read.removed()), ["three"]);
        let resources: Vec<_> = read.resources().map(|bytes| DeltaResource::read(bytes).expect("a resource")).collect();
        assert_eq!(resources.len(), 2);
        assert_eq!(
            (resources[1].name, resources[1].version, resources[1].body),
            ("two", "version of two", &b"two"[..])
        );
        for cut in 1..bytes.len() {
            if let Ok(read) = DeltaResponse::read(&bytes[..cut]) {
                assert!(read.resources().count() <= 2);
            }
        }
    }

    #[test]
    fn messages_are_put_together_however_they_are_cut() {
        let (one, two) = (b"\0\0\0\0\x03abc".to_vec(), b"\0\0\0\0\0".to_vec());
        let all = [one, two].concat();
        for size in 1..=all.len() {
            let (mut messages, mut got) = (Messages::default(), Vec::new());
            for piece in all.chunks(size) {
                messages.push(Bytes::copy_from_slice(piece));
                got.extend(std::iter::from_fn(|| messages.pop()));
            }
            assert_eq!(got, [&b"abc"[..], &b""[..]], "pieces of {size}");
        }
    }
}
