//! The served document tells the truth: about the routes and about the parameters.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::world::World;

async fn document(world: &World) -> Value {
    let answer = world.get("/openapi.json").await;
    assert_eq!(answer.headers["content-type"], "application/json");
    answer.json()
}

#[tokio::test]
async fn every_documented_operation_exists() {
    let world = World::saying("Hello");
    for (path, operations) in document(&world).await["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "delete"] {
            let uri = path.replace("{name}", "tiny");
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(uri);
            let status = world.send(request.body(Body::empty()).unwrap()).await.status.as_u16();
            let exists = operations.get(method).is_some();
            assert_eq!(exists, ![404, 405].contains(&status), "{method} {path}: {status}");
        }
    }
}

/// Every documented parameter is read: a value that it cannot have is refused in its name.
#[tokio::test]
async fn every_documented_parameter_is_read() {
    let world = World::saying("Hello");
    let schemas = document(&world).await["components"]["schemas"].clone();
    let routes = [
        ("ChatCompletionRequest", "/v1/chat/completions"),
        ("CompletionRequest", "/v1/completions"),
    ];
    for (schema, path) in routes {
        let properties = schemas[schema]["properties"].as_object().unwrap();
        assert!(properties.len() > 30, "{schema}");
        for name in properties.keys() {
            let mut body =
                json!({ "prompt": "Hi", "messages": [{ "role": "user", "content": "Hi" }] });
            body[name] = json!({ "no such": { "thing": [] } });
            if name == "chat_template_kwargs" || name == "stream_options" {
                body[name] = json!("no such thing");
            }
            let answer = world.post(path, &body).await;
            assert_eq!(answer.status, 400, "{path} {name}: {}", answer.body);
            assert_eq!(answer.json()["error"]["param"], json!(name), "{path}");
        }
    }
}

/// Every reference leads somewhere, and everything is referred to.
#[tokio::test]
async fn references_are_whole() {
    let document = document(&World::saying("Hello")).await;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let defined: BTreeSet<String> =
        schemas.keys().map(|name| format!("#/components/schemas/{name}")).collect();
    assert_eq!(found, defined);
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}
