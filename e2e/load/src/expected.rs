//! What each sidecar must have in the end, made in this process from the source, or had by a sidecar that asks afresh.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use weft::envoy::Translator;
use weft::mesh::{Dirty, Event as MeshEvent, ProxyId, World};
use weft::snapshot::{Generation, Resource, ResourceName, ResourceType, Snapshot};
use weft::source::{Event, directory};

use crate::catalog::{Catalog, NameId};
use crate::fleet::Fleet;
use crate::mesh::MeshDirectory;
use crate::server::{Kind, Server};
use crate::sidecar::{Have, Sidecar};

/// The types whose contents are known from outside the server: secrets are minted by it.
const COMPARED: [ResourceType; 4] =
    [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener, ResourceType::Route];

/// Fails unless every sidecar of `members` has exactly what it must have.
pub async fn check(server: &Server, fleet: &Fleet, members: impl IntoIterator<Item = usize>) -> anyhow::Result<usize> {
    let mut compared = 0;
    match server.kind() {
        Kind::Weft => {
            let snapshot = translate(server.mesh())?;
            let catalog = fleet.catalog();
            for member in members {
                let sidecar = fleet.sidecar(member);
                compared += against_snapshot(&sidecar, &snapshot, catalog).context(sidecar.node().to_owned())?;
            }
        }
        Kind::GoSnapshot | Kind::GoLinear => {
            let one = |catalog: &Catalog| Ok(server.personas(catalog)?.into_iter().take(1).collect());
            let fresh = Fleet::connect(server.target.clone(), one).await?;
            fresh.tell([0], &crate::stream::Command::Start);
            fresh.synced(1, std::time::Duration::from_secs(30)).await?;
            for member in members {
                compared += against_sidecar(fleet, member, &fresh)?;
            }
        }
    }
    Ok(compared)
}

/// The mesh as the source tells it, translated.
fn translate(mesh: &MeshDirectory) -> anyhow::Result<Snapshot> {
    let (mut world, mut dirty) = (World::default(), Dirty::default());
    for event in directory::read_once(mesh.path())? {
        match event {
            Event::Apply { object: Some(object), .. } => dirty.merge(world.apply(MeshEvent::Apply(object))),
            Event::Rejected(diagnostic) => anyhow::bail!("the mesh has an error: {diagnostic}"),
            _ => {}
        }
    }
    Ok(Snapshot::empty().with(Translator::default().translate(&world, &dirty).changes))
}

fn against_snapshot(sidecar: &Sidecar, snapshot: &Snapshot, catalog: &Catalog) -> anyhow::Result<usize> {
    let proxy: ProxyId = sidecar.node().parse()?;
    let mut compared = 0;
    for kind in COMPARED {
        let mut missing: BTreeSet<ResourceName> = match kind.has_wildcard() {
            true => snapshot.wildcard(&proxy, kind),
            false => BTreeSet::new(),
        };
        for (name, have) in sidecar.holds(kind) {
            let name: ResourceName = (&*catalog.text(name)).into();
            missing.remove(&name);
            // The version is of the bodies for all Envoys; what this one has is compared with the one that is for it.
            let expected = snapshot.get(&proxy, kind, &name).map(|resource| {
                let body = resource.body_for(Generation::Current).clone();
                Resource::new(kind, name.clone(), body, None).version
            });
            match have {
                Have::Content(id) => {
                    let has = catalog.body(id);
                    ensure!(expected == Some(has), "{kind:?} {name}: has {has}, and {expected:?} is right");
                }
                Have::Absent => ensure!(expected.is_none(), "{kind:?} {name}: has none, and {expected:?} is right"),
                Have::Awaited => anyhow::bail!("{kind:?} {name}: asked for and never answered"),
            }
            compared += 1;
        }
        ensure!(missing.is_empty(), "{kind:?}: {} are missing, {:?} first", missing.len(), missing.first());
    }
    Ok(compared)
}

fn against_sidecar(fleet: &Fleet, member: usize, fresh: &Fleet) -> anyhow::Result<usize> {
    let (sidecar, other) = (fleet.sidecar(member), fresh.sidecar(0));
    let mut compared = 0;
    for kind in COMPARED {
        ensure!(sidecar.holds(kind).count() == other.holds(kind).count(), "{}: {kind:?}: not as many", sidecar.node());
        for (name, have) in sidecar.holds(kind) {
            let text = fleet.catalog().text(name);
            let expected = other.have(kind, fresh.catalog().name(&text));
            let body = |catalog: &Catalog, have| match have {
                Have::Content(id) => Some(catalog.body(id)),
                _ => None,
            };
            let has = body(fleet.catalog(), have);
            let expected = expected.and_then(|have| body(fresh.catalog(), have));
            ensure!(has == expected, "{}: {kind:?} {text}: has {has:?}, and {expected:?} is right", sidecar.node());
            compared += 1;
        }
    }
    Ok(compared)
}

/// The names of some Services' clusters.
pub fn names(server: &Server, fleet: &Fleet, services: impl IntoIterator<Item = usize>) -> Vec<NameId> {
    services.into_iter().map(|service| fleet.catalog().name(&server.destination(service))).collect()
}
