use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use serde_json::json;

use super::super::{Config, Object, dns};
use super::*;

#[tokio::test]
async fn inputs_become_files_names_and_actions_and_probes_are_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    let (inputs, queue) = mpsc::unbounded_channel();
    let (effects, mut done) = mpsc::unbounded_channel();
    let zone = Arc::new(ArcSwap::from_pointee(dns::Zone::default()));
    let exit_code = Arc::new(AtomicI32::new(0));
    let code = exit_code.clone();
    let driver = Driver {
        cluster: Cluster::new(Config { executable: "/bin/weft".into(), dual_stack: false }),
        state: StateDir::open(directory.path()).expect("opened"),
        zone: zone.clone(),
        service_proxy: ServiceProxy::Off,
        reach: Reach {
            dial: Arc::new(|_, _| Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })),
            exec: Arc::new(move |_| {
                let code = code.load(Ordering::SeqCst);
                Box::pin(async move { Ok(code) })
            }),
        },
        effects,
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(driver.run(queue, shutdown.clone()));

    let pod = json!({
        "metadata": {"name": "one", "namespace": "shop", "labels": {"app": "one"}},
        "spec": {"containers": [{"name": "app", "image": "weft",
            "readinessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1},
            "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 1}}]},
    });
    let service = json!({"metadata": {"name": "one", "namespace": "shop"},
        "spec": {"selector": {"app": "one"}, "ports": [{"port": 80}]}});
    let objects = [
        Object::Pod(serde_json::from_value(pod).expect("a Pod")),
        Object::Service(serde_json::from_value(service).expect("a Service")),
    ];
    for object in objects {
        inputs.send(Input::Applied(object)).expect("the driver runs");
    }
    let Some(Effect::Pod(PodAction::Start(spec))) = done.recv().await else { panic!("no start") };
    let file = directory.path().join("Pod/shop/one.yaml");
    let written = || std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written().contains(&spec.ip.to_string()), "the Pod is written before it starts");

    inputs.send(Input::Pod(PodEvent::Running { pod: spec.key.clone() })).expect("the driver runs");
    let ready = |text: &str| {
        let pod: serde_json::Value = serde_saphyr::from_str(text).expect("YAML");
        let conditions = pod["status"]["conditions"].as_array().expect("conditions").clone();
        let status: BTreeMap<_, _> = conditions.iter().map(|c| (c["type"].to_string(), c["status"].clone())).collect();
        status["\"Ready\""] == "True"
    };
    eventually("the pod is ready", || ready(&written())).await;
    exit_code.store(1, Ordering::SeqCst);
    let killed = Effect::KillContainer { pod: spec.key.clone(), container: "app".to_owned() };
    assert_eq!(done.recv().await, Some(killed));
    inputs.send(Input::Pod(PodEvent::Exited { pod: spec.key.clone(), code: 137 })).expect("the driver runs");
    loop {
        // Probes that were under way may find the container unhealthy once more.
        match done.recv().await {
            Some(Effect::Pod(PodAction::Start(again))) => break assert_eq!(again, spec),
            Some(Effect::KillContainer { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(!ready(&written()));
    assert!(directory.path().join("Service/shop/one.yaml").exists());
    assert!(Path::new(&directory.path().join("Namespace/shop.yaml")).exists());
    assert_ne!(**zone.load(), dns::Zone::default());
    shutdown.cancel();
    task.await.expect("no panic").expect("no error");
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds).await.unwrap_or_else(|_| panic!("never: {what}"));
}
