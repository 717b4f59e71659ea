//! What a sidecar tells of the traffic that it carries: the mesh's settings, as its namespace and its pod override them.

use crate::mesh::World;
use crate::mesh::object::{MeshConfig, MetricsMode, Pod};
use crate::mesh::telemetry::{AccessLog, AccessLogMode, LogOutput, SpanNames, Tracing};

/// Nothing is off by a flag: what is not there is not told.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Telemetry {
    /// How requests are traced.
    pub tracing: Option<Tracing>,
    /// What is logged; its mode is not `Off`.
    pub access_log: Option<AccessLog>,
    /// What is counted.
    pub metrics: MetricsMode,
}

impl Telemetry {
    /// What older Envoys can tell instead; `None` if they can tell all of it. They know neither the stats logger nor
    /// names for spans, nor the form of OTLP logs that newer ones want: what would go there goes to their output.
    pub fn for_older(&self) -> Option<Self> {
        let access_log = self.access_log.clone().map(|log| AccessLog { output: LogOutput::Stdout, ..log });
        let tracing = self.tracing.clone().map(|tracing| Tracing { spans: SpanNames::OfEnvoy, ..tracing });
        let older = Self { metrics: MetricsMode::Basic, access_log, tracing };
        (older != *self).then_some(older)
    }
}

/// What a sidecar tells that nothing is said of in particular.
pub fn of_mesh(config: &MeshConfig) -> Telemetry {
    Telemetry {
        tracing: config.tracing.clone(),
        access_log: logged(config.access_log.clone()),
        metrics: config.metrics,
    }
}

/// What the sidecar of this pod tells. The annotation of the pod counts before that of its namespace.
pub fn of_pod(world: &World, pod: &Pod) -> Telemetry {
    let (config, namespace) = (world.config(), world.namespace(&pod.key.namespace));
    let sampling = pod.sampling.or_else(|| namespace?.sampling);
    let mode = pod.access_log.or_else(|| namespace?.access_log);
    let tracing = config.tracing.clone();
    let log = config.access_log.clone();
    Telemetry {
        tracing: tracing.map(|tracing| Tracing { sampling: sampling.unwrap_or(tracing.sampling), ..tracing }),
        access_log: logged(AccessLog { mode: mode.unwrap_or(log.mode), ..log }),
        metrics: config.metrics,
    }
}

fn logged(log: AccessLog) -> Option<AccessLog> {
    (log.mode != AccessLogMode::Off).then_some(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Event;
    use crate::mesh::fixture::*;
    use crate::mesh::object::{NamespaceObject, Object};
    use crate::mesh::telemetry::TraceProvider;

    fn tracing() -> Tracing {
        let collector = "jaeger.observability:4317".parse().expect("a collector");
        Tracing {
            provider: TraceProvider::OtlpGrpc(collector),
            sampling: "1".parse().expect("a share"),
            tags: Vec::new(),
            spans: SpanNames::OfRequests,
        }
    }

    #[test]
    fn an_older_envoy_logs_to_its_output_what_a_newer_one_sends() {
        let output = LogOutput::OtlpGrpc("otel.observability:4317".parse().expect("a collector"));
        let sent = AccessLog { mode: AccessLogMode::Errors, output, ..AccessLog::default() };
        let basic = Telemetry { metrics: MetricsMode::Basic, ..Telemetry::default() };
        let newer = Telemetry { access_log: Some(sent.clone()), ..basic.clone() };
        let printed = Some(AccessLog { output: LogOutput::Stdout, ..sent });
        assert_eq!(newer.for_older(), Some(Telemetry { access_log: printed, ..basic.clone() }));
        assert_eq!(basic.for_older(), None, "the same for both");
    }

    #[test]
    fn the_pod_counts_before_its_namespace_and_that_before_the_mesh() {
        let mut world = World::default();
        let mut silent = pod("shop/silent-1", "10.244.0.2");
        silent.sampling = "0".parse().ok();
        silent.access_log = Some(AccessLogMode::Off);
        for object in [
            Object::Pod(pod("other/web-1", "10.244.0.3")),
            Object::Pod(pod("shop/web-1", "10.244.0.4")),
            Object::Pod(silent),
        ] {
            world.apply(Event::Apply(object));
        }
        let shop = NamespaceObject {
            sampling: "50".parse().ok(),
            access_log: Some(AccessLogMode::Errors),
            ..namespace("shop")
        };
        let dirty = world.apply(Event::Apply(Object::Namespace(shop)));
        assert_eq!(dirty.pods.len(), 2, "the pods of the namespace");
        let seen = |world: &World, pod: &str| {
            let Telemetry { tracing, access_log, .. } = of_pod(world, world.pod(&pod_key(pod)).expect("a pod"));
            format!("{:?} {:?}", tracing.map(|tracing| tracing.sampling), access_log.map(|log| log.mode))
        };
        let all = |world: &World| ["other/web-1", "shop/web-1", "shop/silent-1"].map(|pod| seen(world, pod));
        assert_eq!(all(&world), ["None None", "None Some(Errors)", "None None"], "without a collector");
        let config = MeshConfig { tracing: Some(tracing()), ..MeshConfig::default() };
        world.apply(Event::Apply(Object::MeshConfig(config)));
        assert_eq!(all(&world), ["Some(1 %) None", "Some(50 %) Some(Errors)", "Some(0 %) None"]);
    }
}
