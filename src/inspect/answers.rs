//! What the proxies of one replica have answered to objects of an API server, as messages: replicas ask each other.

use std::sync::Arc;
use std::time::SystemTime;

use super::deliveries;
use super::proto::{self, GenerationAnswers, ListAnswersRequest, ListAnswersResponse, ObjectGeneration, ObjectName};
use super::service::resource_type;
use crate::mesh::{ObjectRef, PodKey, ProxyId};
use crate::snapshot::{ResourceType, Version};
use crate::source::manifest::KINDS;
use crate::xds::status::{Answers, ResourceRefusal};

/// So many proxies and refusals are named to another replica.
const NAMED: usize = 3;

/// One state of an object's spec at an API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generation {
    /// The object.
    pub object: ObjectRef,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
}

/// What the proxies of one replica have answered to all that an object has a part in.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReplicaAnswers {
    /// The answers; nobody's, where it has a part in nothing.
    pub answers: Answers,
    /// Something of it has changed since this generation was read; the time that it took is of that.
    pub changed: bool,
}

/// Whoever knows the objects of an API server, and what became of them.
pub trait Generations: Send + Sync {
    /// One for each that is asked for, in this order; `None` for a generation that was not read yet, or only a moment ago,
    /// or is not the newest that was read.
    fn answers(&self, of: &[Generation]) -> Vec<Option<ReplicaAnswers>>;
}

/// Answers a request.
pub(super) fn list(generations: &dyn Generations, request: ListAnswersRequest) -> ListAnswersResponse {
    let asked: Vec<Option<Generation>> = request.objects.into_iter().map(generation).collect();
    let known: Vec<Generation> = asked.iter().flatten().cloned().collect();
    let mut answers = generations.answers(&known).into_iter();
    let of = |asked: &Option<Generation>| asked.as_ref().and_then(|_| answers.next().flatten());
    ListAnswersResponse { objects: asked.iter().map(of).map(message).collect() }
}

/// What to ask another replica.
pub(crate) fn request(of: &[Generation]) -> ListAnswersRequest {
    let object = |of: &Generation| ObjectGeneration {
        object: Some(deliveries::object_name(Some(&of.object))),
        uid: of.uid.to_string(),
        generation: of.generation,
    };
    ListAnswersRequest { objects: of.iter().map(object).collect() }
}

/// What another replica says of one generation; `None` while it has yet to read it.
pub(crate) fn read(message: GenerationAnswers) -> Option<ReplicaAnswers> {
    let proto::Answers { proxies, sent, acknowledged, pending, pending_proxies, refusing, refusals, took } =
        message.answers?;
    let answers = Answers {
        proxies,
        sent,
        acknowledged,
        pending,
        pending_proxies: pending_proxies.into_iter().map(proxy).collect(),
        refusing,
        refusals: refusals.into_iter().filter_map(refusal).collect(),
        took: took.and_then(|took| took.try_into().ok()),
    };
    Some(ReplicaAnswers { answers, changed: message.changed })
}

/// `None` for a kind that this version does not know.
fn generation(asked: ObjectGeneration) -> Option<Generation> {
    let ObjectName { kind, namespace, name } = asked.object?;
    let kind = *KINDS.iter().find(|known| known.to_string() == kind)?;
    let namespace = (!namespace.is_empty()).then(|| namespace.as_str().into());
    let object = ObjectRef { kind, namespace, name: name.into() };
    Some(Generation { object, uid: asked.uid.into(), generation: asked.generation })
}

fn message(of: Option<ReplicaAnswers>) -> GenerationAnswers {
    let Some(ReplicaAnswers { mut answers, changed }) = of else { return GenerationAnswers::default() };
    answers.pending_proxies.truncate(NAMED);
    answers.refusals.truncate(NAMED);
    GenerationAnswers { answers: Some(deliveries::answers(answers)), changed }
}

fn proxy(pod: proto::PodName) -> ProxyId {
    ProxyId(PodKey::new(pod.namespace.as_str(), pod.pod))
}

/// `None` for a resource of a type that this version does not know.
fn refusal(refusal: proto::ResourceRefusal) -> Option<ResourceRefusal> {
    Some(ResourceRefusal {
        kind: ResourceType::ALL.into_iter().find(|kind| resource_type(*kind) == refusal.r#type())?,
        proxy: proxy(refusal.proxy?),
        at: refusal.at.and_then(|at| at.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH),
        name: refusal.name.into(),
        version: Version::parse(&refusal.version)?,
        message: refusal.message,
    })
}
