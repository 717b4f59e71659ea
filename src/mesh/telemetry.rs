//! What sidecars tell of the traffic that they carry: traces and access logs.

use std::fmt;
use std::str::FromStr;

/// `MeshConfig.spec.tracing`: where spans go, which requests are traced, and what spans say besides.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tracing {
    /// `provider`.
    pub provider: TraceProvider,
    /// `sampling`.
    pub sampling: Sampling,
    /// `tags`.
    pub tags: Vec<TraceTag>,
    /// What spans are called.
    pub spans: SpanNames,
}

/// What spans are called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SpanNames {
    /// By the request: `GET cart.shop`.
    #[default]
    OfRequests,
    /// As Envoy does by itself, where it cannot be told: `egress cart.shop`, `ingress`.
    OfEnvoy,
}

/// The protocol and the place of the collector of spans.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TraceProvider {
    /// OpenTelemetry over gRPC: `otlp.grpc`.
    OtlpGrpc(HostPort),
    /// OpenTelemetry over HTTP: `otlp.http`, with the path of traces.
    OtlpHttp(HostPort, String),
    /// Zipkin's JSON over HTTP: `zipkin`, with the path of spans.
    Zipkin(HostPort, String),
}

impl TraceProvider {
    /// Where the collector is.
    pub fn collector(&self) -> &HostPort {
        match self {
            Self::OtlpGrpc(at) | Self::OtlpHttp(at, _) | Self::Zipkin(at, _) => at,
        }
    }
}

/// A tag of every span.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TraceTag {
    /// Its name.
    pub name: String,
    /// Where its value is from.
    pub value: TagValue,
}

/// Where the value of a tag is from. A span has no tag whose value is not there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TagValue {
    /// A header of the request, in lower case.
    Header(String),
    /// This text.
    Literal(String),
    /// A variable of the sidecar's environment.
    Environment(String),
}

/// The share of requests that begin a trace. A request that comes with the decision of another keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sampling {
    /// Of 10,000: what Envoy counts in.
    ten_thousandths: u16,
}

/// Why a number is no share.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a percentage that can be sampled; use 0, or a number from 0.01 to 100")]
pub struct SamplingError(String);

impl Sampling {
    /// A share in percent.
    ///
    /// # Errors
    /// When it is none, or less than one request in 10,000 without being 0.
    pub fn percent(percent: f64) -> Result<Self, SamplingError> {
        let refused = || SamplingError(percent.to_string());
        if !(0.0..=100.0).contains(&percent) {
            return Err(refused());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10,000")]
        let ten_thousandths = (percent * 100.0).round() as u16;
        if ten_thousandths == 0 && percent > 0.0 {
            return Err(refused());
        }
        Ok(Self { ten_thousandths })
    }

    /// How many of 10,000 requests.
    pub fn of_ten_thousand(self) -> u16 {
        self.ten_thousandths
    }
}

/// 1 %: what is sampled once a provider is named.
impl Default for Sampling {
    fn default() -> Self {
        Self { ten_thousandths: 100 }
    }
}

/// A number of percent, without the sign.
impl FromStr for Sampling {
    type Err = SamplingError;

    fn from_str(text: &str) -> Result<Self, SamplingError> {
        let percent = text.trim().parse().map_err(|_| SamplingError(text.to_owned()))?;
        Self::percent(percent)
    }
}

impl fmt::Debug for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.ten_thousandths) / 100.0)
    }
}

/// `MeshConfig.spec.accessLog`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct AccessLog {
    /// `mode`.
    pub mode: AccessLogMode,
    /// `format`.
    pub format: LogFormat,
    /// `output`.
    pub output: LogOutput,
}

/// Which requests and connections are logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum AccessLogMode {
    /// None.
    #[default]
    Off,
    /// Those that went wrong: a status of 400 or more, a gRPC status other than OK, or a response flag of Envoy's.
    Errors,
    /// All.
    All,
}

/// The form of an entry on standard output.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum LogFormat {
    /// A line of `name=value`.
    #[default]
    Text,
    /// A line of JSON.
    Json,
}

/// Where entries go.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum LogOutput {
    /// The sidecar's standard output.
    #[default]
    Stdout,
    /// An OpenTelemetry collector, over gRPC.
    OtlpGrpc(HostPort),
}

/// `HOST:PORT`. The host is a DNS name, which each sidecar resolves as its pod does, or an address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostPort {
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a text names no host and port.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is not a host and port; write it as jaeger.observability:4317")]
pub struct HostPortError(String);

impl HostPort {
    /// A host and port of which the port may be left out.
    ///
    /// # Errors
    /// When it is none.
    pub fn with_default(text: &str, port: u16) -> Result<Self, HostPortError> {
        let has_port = text.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
        if has_port { text.parse() } else { format!("{text}:{port}").parse() }
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let refused = || HostPortError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?.to_string(),
            None if is_dns_name(host) => host.to_owned(),
            None => return Err(refused()),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Labels of letters, digits, `-` and `_`, separated by dots; an IPv4 address is one, too.
fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty() && label.len() <= 63 && label.chars().all(allowed)
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_read_to_a_hundredth_of_a_percent() {
        for (text, of) in [("0", 0), ("1", 100), ("0.01", 1), (" 12.5 ", 1250), ("100", 10_000), ("1e1", 1000)] {
            assert_eq!(text.parse().map(Sampling::of_ten_thousand), Ok(of), "{text}");
        }
        for text in ["", "-1", "100.5", "0.001", "NaN", "inf", "1%", "all"] {
            let refused = text.parse::<Sampling>().expect_err(text).to_string();
            assert!(refused.contains("0.01 to 100"), "{text}: {refused}");
        }
    }

    #[test]
    fn a_collector_is_a_name_or_an_address_with_a_port() {
        for (text, host) in [
            ("jaeger.observability:4317", "jaeger.observability"),
            ("10.0.0.7:4317", "10.0.0.7"),
            ("[fd00::7]:4317", "fd00::7"),
            ("otel-collector:1", "otel-collector"),
        ] {
            let read: HostPort = text.parse().expect(text);
            assert_eq!((read.host.as_str(), read.to_string().as_str()), (host, text));
        }
        for text in
            ["", "jaeger", "jaeger:", "jaeger:0", "jaeger:http", ":4317", "a b:1", "a..b:1", "fd00::7:1", "[x]:1"]
        {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
        let given = |text| HostPort::with_default(text, 80).map(|at| at.to_string());
        assert_eq!(given("jaeger"), Ok("jaeger:80".to_owned()));
        assert_eq!(given("jaeger:8"), Ok("jaeger:8".to_owned()));
        assert_eq!(given("[fd00::7]"), Ok("[fd00::7]:80".to_owned()));
        assert_eq!(given("[fd00::7]:8"), Ok("[fd00::7]:8".to_owned()));
    }
}
