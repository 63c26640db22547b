//! What an operator sees of a deployment's instances, and changes about them.

use serde_json::{Value, json};
use stallfree_core::InstanceId;
use stallfree_engine::{InstanceStatus, Role};
use stallfree_server::ServerConfig;

use crate::world::{World, config};

fn world(config: ServerConfig) -> World {
    let world = World::with(Vec::new(), true, config);
    let status = |(id, role): (u32, Role)| InstanceStatus {
        instance: InstanceId(id),
        role,
        is_draining: false,
        is_lost: false,
        num_seqs: 3,
        num_prefills: 1,
        num_tokens: 40,
        num_kept: 2,
    };
    *world.engine.instances.lock().unwrap() =
        [(0, Role::Prefill), (1, Role::Decode)].map(status).into();
    world
}

#[tokio::test]
async fn instances_are_listed_and_changed() {
    let world = world(config());
    let first = json!({ "id": 0, "object": "instance", "role": "prefill", "draining": false, "lost": false,
        "num_requests": 3, "num_prefills": 1, "num_tokens": 40, "num_kept": 2 });
    let list = world.get("/admin/instances").await.json();
    assert_eq!((&list["object"], &list["data"][0]), (&json!("list"), &first));
    assert_eq!(list["data"].as_array().map(Vec::len), Some(2));
    for (change, role, draining) in [
        (json!({ "role": "mixed" }), "mixed", false),
        (json!({ "draining": true, "role": null }), "mixed", true),
        (json!({ "draining": false, "role": "decode" }), "decode", false),
    ] {
        let status = world.ok("/admin/instances/1", change).await;
        assert_eq!((&status["role"], &status["draining"]), (&json!(role), &json!(draining)));
        assert_eq!(world.get("/admin/instances").await.json()["data"][1], status);
    }
}

#[tokio::test]
async fn what_can_not_be_changed_is_named() {
    let world = world(config());
    for (path, body, code, param) in [
        ("/admin/instances/2", json!({ "draining": true }), 404, Value::Null),
        ("/admin/instances/one", json!({ "draining": true }), 404, Value::Null),
        ("/admin/instances/-1", json!({ "role": "decode" }), 404, Value::Null),
        ("/admin/instances/0", json!({ "role": "judge" }), 400, json!("role")),
        ("/admin/instances/0", json!({ "role": 1 }), 400, json!("role")),
        ("/admin/instances/0", json!({ "draining": "yes" }), 400, json!("draining")),
        ("/admin/instances/0", json!({}), 400, Value::Null),
    ] {
        let answer = world.post(path, &body).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status.as_u16(), &error["param"]), (code, &param), "{path} {body}");
    }
    let keyed = self::world(ServerConfig { api_keys: vec!["key".to_owned()], ..config() });
    assert_eq!(keyed.get("/admin/instances").await.status, 401);
    assert_eq!(keyed.post("/admin/instances/0", &json!({ "draining": true })).await.status, 401);
}
