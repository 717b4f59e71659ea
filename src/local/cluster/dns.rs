//! The cluster DNS: the names of Services and pods as in Kubernetes (DNS specification 1.1.0).
//!
//! ```text
//!  Services, EndpointSlices, pods ──Zone::new──▶ Zone (names and data) ──ArcSwap──▶ Server (UDP and TCP)
//! ```
//!
//! A [`Zone`] is computed anew and swapped in whole, so an answer never mixes two states. Names outside the cluster
//! domain do not exist, unless there is a forwarder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

mod server;
#[cfg(test)]
mod tests;
mod zone;

pub use server::Server;
pub use zone::Zone;
use zone::{Data, Found};

use super::CLUSTER_DOMAIN;

/// Seconds for which an answer may be kept, as CoreDNS says by default.
const TTL: u32 = 5;
/// The longest chain of aliases that is followed.
const MOST_ALIASES: usize = 8;

/// What becomes of a query.
#[derive(Debug)]
enum Answer {
    /// This is the response.
    Response(Message),
    /// The name is not the cluster's.
    Foreign(Message),
}

/// Answers `query` from `zone`. For a foreign name the response says that it does not exist.
fn answer(zone: &Zone, query: &Message) -> Answer {
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.queries.clone_from(&query.queries);
    if let Some(edns) = &query.edns {
        let mut own = hickory_proto::op::Edns::new();
        own.set_max_payload(edns.max_payload().max(512)).set_version(0);
        response.set_edns(own);
    }
    if query.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return Answer::Response(response);
    }
    let [question] = &query.queries[..] else {
        response.metadata.response_code = ResponseCode::FormErr;
        return Answer::Response(response);
    };
    if question.query_class() != DNSClass::IN {
        response.metadata.response_code = ResponseCode::Refused;
        return Answer::Response(response);
    }
    let mut name = zone::normal(&question.name().to_ascii());
    for _ in 0..MOST_ALIASES {
        let records = match zone.find(&name) {
            Found::Records(records) => records,
            Found::Nothing(apex) => {
                response.metadata.authoritative = true;
                if response.answers.is_empty() {
                    response.metadata.response_code = ResponseCode::NXDomain;
                }
                response.authorities.extend(soa(apex));
                return Answer::Response(response);
            }
            // An alias to a foreign name: its own resolver follows it.
            Found::Foreign if !response.answers.is_empty() => return Answer::Response(response),
            Found::Foreign => {
                response.metadata.response_code = ResponseCode::NXDomain;
                return Answer::Foreign(response);
            }
        };
        response.metadata.authoritative = true;
        let wanted = question.query_type();
        response.answers.extend(records.iter().filter_map(|data| record(&name, data, wanted)));
        let alias = records.iter().find_map(|data| match data {
            Data::Cname(target) if !matches!(wanted, RecordType::CNAME | RecordType::ANY) => Some(target),
            _ => None,
        });
        match alias {
            Some(target) => {
                response.answers.extend(record(&name, &Data::Cname(target.clone()), RecordType::CNAME));
                name.clone_from(target);
            }
            None => {
                for data in records.iter().filter(|_| wanted == RecordType::SRV) {
                    additional(zone, data, &mut response);
                }
                break;
            }
        }
    }
    if response.answers.is_empty() {
        response.authorities.extend(soa(CLUSTER_DOMAIN));
    }
    Answer::Response(response)
}

/// The addresses of an SRV record's target, so that nobody has to ask again.
fn additional(zone: &Zone, data: &Data, response: &mut Message) {
    if let Data::Srv { target, .. } = data
        && let Found::Records(records) = zone.find(target)
    {
        response.additionals.extend(records.iter().filter_map(|data| record(target, data, RecordType::A)));
        response.additionals.extend(records.iter().filter_map(|data| record(target, data, RecordType::AAAA)));
    }
}

/// The record for `data` if it is of the wanted type. A name that DNS cannot carry gives none.
fn record(name: &str, data: &Data, wanted: RecordType) -> Option<Record> {
    let data = match data {
        Data::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
        Data::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
        Data::Cname(target) => RData::CNAME(CNAME(absolute(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(absolute(target)?)),
        Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, absolute(target)?)),
    };
    let fits = wanted == RecordType::ANY || wanted == data.record_type();
    fits.then(|| absolute(name).map(|name| Record::from_rdata(name, TTL, data))).flatten()
}

/// The start of authority of `apex`: with the answer that something does not exist, it says for how long to believe it.
fn soa(apex: &str) -> Option<Record> {
    let contact = absolute(&format!("hostmaster.{CLUSTER_DOMAIN}"))?;
    let server = absolute(&format!("ns.dns.{CLUSTER_DOMAIN}"))?;
    let soa = SOA::new(server, contact, 1, 7200, 1800, 86400, TTL);
    Some(Record::from_rdata(absolute(apex)?, TTL, RData::SOA(soa)))
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

/// `10.244.0.2` is `2.0.244.10.in-addr.arpa`.
fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = Ipv4Addr::octets(&ip);
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(ip) => {
            let nibbles = Ipv6Addr::octets(&ip).into_iter().rev().flat_map(|byte| [byte & 0xf, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}
