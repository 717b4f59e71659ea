//! What can be called: a URL with the scheme `http`, `grpc` or `tcp`.

use std::fmt;
use std::str::FromStr;

use axum::http::Uri;
use axum::http::uri::{Authority, Scheme};

/// A destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// An HTTP request to this URI.
    Http(Uri),
    /// A unary Echo to the server of this origin (`http://HOST:PORT`).
    Grpc(Uri),
    /// A connection, a line, and its answer; `HOST:PORT`.
    Tcp(Authority),
}

/// Why a URL cannot be called.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TargetError {
    #[error("{0:?} is not a URL: write http://HOST[:PORT][/PATH], grpc://HOST:PORT or tcp://HOST:PORT")]
    NotAUrl(String),
    #[error("{0:?} has a scheme that cannot be called: use http, grpc or tcp")]
    Scheme(String),
    #[error("{0:?} names no port: {1}://HOST:PORT is needed")]
    NoPort(String, &'static str),
    #[error("{0:?} has a path: {1}://HOST:PORT is all there can be")]
    Path(String, &'static str),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let not_a_url = || TargetError::NotAUrl(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| not_a_url())?;
        let authority = uri.authority().filter(|a| !a.host().is_empty()).cloned().ok_or_else(not_a_url)?;
        let bare = |scheme| match (authority.port_u16(), uri.path(), uri.query()) {
            (None, _, _) => Err(TargetError::NoPort(text.to_owned(), scheme)),
            (Some(_), "" | "/", None) => Ok(authority.clone()),
            _ => Err(TargetError::Path(text.to_owned(), scheme)),
        };
        match uri.scheme_str() {
            Some("http") => Ok(Self::Http(uri)),
            Some("grpc") => {
                let origin = Uri::builder().scheme(Scheme::HTTP).authority(bare("grpc")?).path_and_query("/").build();
                origin.map(Self::Grpc).map_err(|_| not_a_url())
            }
            Some("tcp") => Ok(Self::Tcp(bare("tcp")?)),
            _ => Err(TargetError::Scheme(text.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) => write!(f, "{uri}"),
            Self::Grpc(origin) => write!(f, "grpc://{}", origin.authority().map_or("", Authority::as_str)),
            Self::Tcp(authority) => write!(f, "tcp://{authority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_scheme_and_prints_it_again() {
        for text in ["http://cart/", "http://cart:8080/a?b=c", "http://[::1]:80/", "grpc://inventory:9090", "tcp://l:1"]
        {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn says_what_is_wrong_with_the_rest() {
        type Expected = fn(&TargetError) -> bool;
        let cases: [(&str, Expected); 8] = [
            ("", |e| matches!(e, TargetError::NotAUrl(_))),
            ("http:///path", |e| matches!(e, TargetError::NotAUrl(_))),
            ("http://a b/", |e| matches!(e, TargetError::NotAUrl(_))),
            ("/path", |e| matches!(e, TargetError::NotAUrl(_))),
            ("https://cart/", |e| matches!(e, TargetError::Scheme(_))),
            ("tcp://ledger", |e| matches!(e, TargetError::NoPort(_, "tcp"))),
            ("grpc://inventory", |e| matches!(e, TargetError::NoPort(_, "grpc"))),
            ("grpc://inventory:1/x", |e| matches!(e, TargetError::Path(_, "grpc"))),
        ];
        for (text, expected) in cases {
            let found = text.parse::<Target>();
            assert!(found.as_ref().is_err_and(expected), "{text}: {found:?}");
        }
    }
}
