//! Stable hashes of text, in the alphabet of Kubernetes' generated names.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// Letters and digits as Kubernetes takes them for generated names: no vowels, so that no word appears.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A number that depends on `text` only.
pub(super) fn number(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

/// A suffix of `length` characters that depends on `text` only.
pub(super) fn suffix(text: &str, length: usize) -> String {
    let mut rest = number(text);
    let mut suffix = String::with_capacity(length);
    for _ in 0..length {
        suffix.push(char::from(ALPHABET[(rest % 27) as usize]));
        rest /= 27;
    }
    suffix
}

/// A UUID (version 8, RFC 9562: custom) that depends on `text` only.
pub(super) fn uuid(text: &str) -> String {
    let bits = xxh3_128(text.as_bytes());
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x8 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
