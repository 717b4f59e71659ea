//! The way into a playground that runs on this machine, for the commands that ask it something.

use std::io;
use std::net::{Ipv4Addr, TcpStream};

use super::proxy::reach::{KnownPod, Reach, Target};
use crate::local::control::PodSelector;
use crate::local::{Client, node};
use crate::mesh::{PodKey, WorkloadKey};

/// Connects to the playground of this name.
pub(super) fn reach(name: &str) -> anyhow::Result<Box<dyn Reach>> {
    Ok(Box::new(Playground(Client::connect(name)?)))
}

struct Playground(Client);

impl Reach for Playground {
    fn connect(&self, target: &Target) -> io::Result<TcpStream> {
        let (from, to) = match target {
            Target::Address(address) => return TcpStream::connect(address),
            Target::Admin(pod) => {
                let pod = PodSelector::new(pod.namespace.to_string(), &*pod.name);
                (Some(pod), (Ipv4Addr::LOCALHOST, 15000).into())
            }
            Target::ControlPlane | Target::Replica(_) => (None, (node::NODE_IP, 15014).into()),
        };
        self.0.dial(from, to).map_err(io::Error::other)
    }

    fn pods(&self) -> io::Result<Option<Vec<KnownPod>>> {
        let status = self.0.status().map_err(io::Error::other)?;
        let known = status.pods.into_iter().filter(|pod| pod.meshed).map(|pod| KnownPod {
            workload: Some(WorkloadKey::new(pod.namespace.as_str(), pod.workload)),
            key: PodKey::new(pod.namespace.as_str(), pod.name),
        });
        Ok(Some(known.collect()))
    }
}
