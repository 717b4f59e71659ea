//! Who has which address.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{DNS_ADDRESS, hash};
use crate::mesh::ServiceKey;

/// How long a pod's address rests after the pod has gone: connections and configuration that still name it must not
/// reach another pod.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(60);

/// The pod range 10.244.0.0/16, from .0.2 on (.0.1 is the node).
const POD_BASE: u32 = u32::from_be_bytes([10, 244, 0, 0]);
const POD_FIRST: u32 = 2;
const POD_LAST: u32 = 0xfffe;
/// The range of what stands for hosts outside the cluster, 203.0.113.0/24.
const OUTSIDE_BASE: u32 = u32::from_be_bytes([203, 0, 113, 0]);
const OUTSIDE_LAST: u32 = 0xfe;

/// The Service range 10.96.0.0/12. As in Kubernetes (KEP-3070) addresses are picked from its upper part, so that
/// those which people write into `spec.clusterIP` (mostly low ones) are free.
const SERVICE_BASE: u32 = u32::from_be_bytes([10, 96, 0, 0]);
const SERVICE_SIZE: u32 = 1 << 20;
const SERVICE_PICKED_FROM: u32 = 4096;

/// The IPv6 address that goes with an IPv4 address of the cluster: fd00:10:244::/64 for pods, fd00:10:96::/64 for
/// Services, 2001:db8::/64 for hosts outside.
pub(super) const fn ipv6(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    let last = u16::from_be_bytes([c, d]);
    match (a, b) {
        (10, 244) => Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, last),
        (10, _) => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, b as u16, last),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last),
    }
}

/// Addresses of pods: ascending, the range once through before any is used again, and none within [`QUARANTINE`].
#[derive(Debug)]
pub(super) struct PodAddresses {
    base: u32,
    last: u32,
    next: u32,
    used: BTreeSet<Ipv4Addr>,
    resting: VecDeque<(Timestamp, Ipv4Addr)>,
}

impl Default for PodAddresses {
    fn default() -> Self {
        Self::of(POD_BASE, POD_LAST)
    }
}

impl PodAddresses {
    /// Those of pods that stand for hosts outside the cluster.
    pub(super) fn outside() -> Self {
        Self::of(OUTSIDE_BASE, OUTSIDE_LAST)
    }

    fn of(base: u32, last: u32) -> Self {
        Self { base, last, next: POD_FIRST, used: BTreeSet::new(), resting: VecDeque::new() }
    }

    /// A free address; `None` when the range is full.
    pub(super) fn allocate(&mut self, now: Timestamp) -> Option<Ipv4Addr> {
        while let Some((since, address)) = self.resting.front()
            && now.duration_since(*since) >= QUARANTINE
        {
            self.used.remove(address);
            self.resting.pop_front();
        }
        for _ in POD_FIRST..=self.last {
            let address = Ipv4Addr::from(self.base + self.next);
            self.next = if self.next == self.last { POD_FIRST } else { self.next + 1 };
            if self.used.insert(address) {
                return Some(address);
            }
        }
        None
    }

    /// Gives an address back, if it is one of these.
    pub(super) fn release(&mut self, address: Ipv4Addr, now: Timestamp) {
        if self.used.contains(&address) {
            self.resting.push_back((now, address));
        }
    }
}

/// Addresses of Services: the one that `spec.clusterIP` asks for, else a hash of the name.
#[derive(Debug, Default)]
pub(super) struct ServiceAddresses {
    by_address: BTreeMap<Ipv4Addr, ServiceKey>,
    by_service: BTreeMap<ServiceKey, Ipv4Addr>,
}

/// Why a Service did not get the address it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressRefused {
    #[error("`{0}` is no IPv4 address")]
    Unreadable(String),
    #[error("{0} is not in the Service range 10.96.0.0/12")]
    OutOfRange(Ipv4Addr),
    #[error("{0} is the address of the cluster DNS")]
    Dns(Ipv4Addr),
    #[error("{0} belongs to Service {1}")]
    Taken(Ipv4Addr, ServiceKey),
}

impl ServiceAddresses {
    /// The address of `service`, which may ask for a certain one. A Service keeps what it has; a refused wish leaves
    /// it with a picked address. `None` when the range is full.
    pub(super) fn allocate(
        &mut self,
        service: &ServiceKey,
        wish: Option<&str>,
    ) -> (Option<Ipv4Addr>, Option<AddressRefused>) {
        let refused = match wish.map(|wish| self.wish(service, wish)) {
            Some(Ok(address)) => {
                self.take(service, address);
                return (Some(address), None);
            }
            Some(Err(refused)) => Some(refused),
            None => None,
        };
        let kept = self.by_service.get(service).copied();
        let address = kept.or_else(|| self.pick(service));
        if let Some(address) = address {
            self.take(service, address);
        }
        (address, refused)
    }

    /// Gives the address of `service` back.
    pub(super) fn release(&mut self, service: &ServiceKey) {
        if let Some(address) = self.by_service.remove(service) {
            self.by_address.remove(&address);
        }
    }

    fn take(&mut self, service: &ServiceKey, address: Ipv4Addr) {
        self.release(service);
        self.by_address.insert(address, service.clone());
        self.by_service.insert(service.clone(), address);
    }

    fn wish(&self, service: &ServiceKey, wish: &str) -> Result<Ipv4Addr, AddressRefused> {
        let address: Ipv4Addr = wish.parse().map_err(|_| AddressRefused::Unreadable(wish.to_owned()))?;
        let offset = u32::from(address).wrapping_sub(SERVICE_BASE);
        if offset == 0 || offset >= SERVICE_SIZE - 1 {
            return Err(AddressRefused::OutOfRange(address));
        }
        if address == DNS_ADDRESS {
            return Err(AddressRefused::Dns(address));
        }
        match self.by_address.get(&address) {
            Some(owner) if owner != service => Err(AddressRefused::Taken(address, owner.clone())),
            _ => Ok(address),
        }
    }

    /// The first free address from the hash of the name on: the same after a restart, unless two names collide.
    fn pick(&self, service: &ServiceKey) -> Option<Ipv4Addr> {
        let size = SERVICE_SIZE - 1 - SERVICE_PICKED_FROM;
        let start = (hash::number(&service.to_string()) % u64::from(size)) as u32;
        (0..size)
            .map(|step| Ipv4Addr::from(SERVICE_BASE + SERVICE_PICKED_FROM + (start + step) % size))
            .find(|address| !self.by_address.contains_key(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_address_rests_for_a_minute() {
        let mut addresses = PodAddresses::default();
        let start = Timestamp::UNIX_EPOCH;
        let first = addresses.allocate(start).expect("room");
        assert_eq!(first, Ipv4Addr::new(10, 244, 0, 2));
        addresses.release(first, start);
        let all_others: BTreeSet<_> =
            (POD_FIRST..POD_LAST).map(|_| addresses.allocate(start).expect("room for all but the first")).collect();
        assert!(!all_others.contains(&first));
        assert_eq!(all_others.len(), 0xfffc);
        assert_eq!(addresses.allocate(start + SignedDuration::from_secs(59)), None);
        assert_eq!(addresses.allocate(start + SignedDuration::from_secs(60)), Some(first));
    }

    #[test]
    fn a_service_keeps_its_address_and_gets_the_one_it_asks_for() {
        let mut addresses = ServiceAddresses::default();
        let cart = ServiceKey::new("shop", "cart");
        let (picked, _) = addresses.allocate(&cart, None);
        assert_eq!(addresses.allocate(&cart, None).0, picked);
        assert_eq!(ServiceAddresses::default().allocate(&cart, None).0, picked, "the same after a restart");
        let wished = Ipv4Addr::new(10, 96, 1, 1);
        assert_eq!(addresses.allocate(&cart, Some("10.96.1.1")), (Some(wished), None));
        let other = ServiceKey::new("shop", "other");
        let (instead, refused) = addresses.allocate(&other, Some("10.96.1.1"));
        assert_eq!(refused, Some(AddressRefused::Taken(wished, cart.clone())));
        assert!(instead.is_some_and(|address| address != wished));
        for (wish, why) in [("10.96.0.10", "DNS"), ("10.95.0.1", "range"), ("10.112.0.0", "range"), ("x", "address")] {
            let refused = addresses.allocate(&other, Some(wish)).1.expect("refused");
            assert!(refused.to_string().contains(why), "{refused}");
        }
    }

    #[test]
    fn names_that_hash_alike_get_different_addresses() {
        let mut addresses = ServiceAddresses::default();
        let cart = ServiceKey::new("shop", "cart");
        let natural = ServiceAddresses::default().allocate(&cart, None).0.expect("room");
        addresses.take(&ServiceKey::new("shop", "squatter"), natural);
        let got = addresses.allocate(&cart, None).0.expect("room");
        assert_ne!(got, natural);
    }
}
