//! The document that describes the control API to other languages.

/// OpenAPI 3.1, as served at `/openapi.json`. A test generates it from [`api`](super::api) and
/// compares; `BITMESH_BLESS=1 cargo test -p bitmesh-node openapi` writes it anew.
pub const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

#[cfg(test)]
mod tests {
    use schemars::{SchemaGenerator, generate::SchemaSettings};
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::control::{
        api::{Event, Request, RequestVisitor, each_request},
        error::{ErrorBody, ErrorCode},
    };

    struct Writer {
        generator: SchemaGenerator,
        paths: Map<String, Value>,
    }

    impl RequestVisitor for Writer {
        fn visit<R: Request>(&mut self) {
            let route = R::ROUTE;
            let reply = self.generator.subschema_for::<R::Reply>();
            // The request's own schema, not a reference: its fields are spread over path, query
            // and body.
            let request = R::json_schema(&mut self.generator).to_value();
            let required = request["required"].as_array().cloned().unwrap_or_default();
            let fields = request["properties"]
                .as_object()
                .cloned()
                .unwrap_or_default();
            let (in_path, rest): (Map<_, _>, Map<_, _>) = fields
                .into_iter()
                .partition(|(name, _)| route.path.contains(&format!("{{{name}}}")));

            let parameter = |(name, schema): (&String, &Value), place: &str| {
                let mut schema = schema.clone();
                let about = schema
                    .as_object_mut()
                    .and_then(|schema| schema.remove("description"));
                without_null(&mut schema);
                json!({
                    "name": name,
                    "in": place,
                    "required": place == "path" || required.contains(&json!(name)),
                    "description": about,
                    "schema": schema,
                })
            };
            let mut parameters: Vec<Value> = in_path
                .iter()
                .map(|field| parameter(field, "path"))
                .collect();
            let mut operation = json!({
                "operationId": route.name,
                "summary": route.about.trim(),
                "responses": {
                    "200": {
                        "description": "Done.",
                        "content": { "application/json": { "schema": reply } },
                    },
                    "default": { "$ref": "#/components/responses/Error" },
                },
            });
            if route.method == "GET" {
                parameters.extend(rest.iter().map(|field| parameter(field, "query")));
            } else if !rest.is_empty() {
                let needed: Vec<&Value> = required
                    .iter()
                    .filter(|name| name.as_str().is_some_and(|name| rest.contains_key(name)))
                    .collect();
                operation["requestBody"] = json!({
                    "required": !needed.is_empty(),
                    "content": { "application/json": { "schema": {
                        "type": "object",
                        "properties": rest,
                        "required": needed,
                        "additionalProperties": false,
                    } } },
                });
            }
            if !parameters.is_empty() {
                operation["parameters"] = Value::Array(parameters);
            }
            let path = self.paths.entry(route.path).or_insert_with(|| json!({}));
            path[route.method.to_lowercase()] = operation;
        }
    }

    /// A parameter is left out, never null.
    fn without_null(schema: &mut Value) {
        if let Some(kinds) = schema["type"].as_array() {
            let kind = kinds.iter().find(|kind| *kind != "null").unwrap().clone();
            schema["type"] = kind;
        }
        if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
            let choice = choices
                .iter()
                .find(|choice| choice["type"] != "null")
                .unwrap();
            *schema = choice.clone();
        }
    }

    fn written() -> String {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        let mut writer = Writer {
            generator: settings.into_generator(),
            paths: Map::new(),
        };
        each_request(&mut writer);
        let Writer {
            mut generator,
            mut paths,
        } = writer;

        let event = generator.subschema_for::<Event>();
        let error = generator.subschema_for::<ErrorBody>();
        paths.insert("/v1/events".into(), json!({ "get": {
            "operationId": "WatchEvents",
            "summary": "What happens from now on, as server-sent events.",
            "parameters": [{
                "name": "types",
                "in": "query",
                "required": false,
                "description": "Names of the events to send, separated by commas. Absent: all of them.",
                "schema": { "type": "string" },
            }],
            "responses": {
                "200": {
                    "description": "One event after another; the data of each is an Event.",
                    "content": { "text/event-stream": { "schema": event } },
                },
                "default": { "$ref": "#/components/responses/Error" },
            },
        }}));
        paths.insert(
            "/openapi.json".into(),
            json!({ "get": {
                "operationId": "GetDocument",
                "summary": "This document.",
                "responses": { "200": {
                    "description": "OpenAPI 3.1.",
                    "content": { "application/json": { "schema": { "type": "object" } } },
                } },
            }}),
        );

        let statuses: Vec<String> = ErrorCode::ALL
            .iter()
            .map(|code| {
                let name = serde_json::to_value(code).unwrap();
                format!("{} {}", code.http_status(), name.as_str().unwrap())
            })
            .collect();
        let document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "BitMesh control API",
                "version": "1",
                "summary": "What the command line says to the daemon, for other programs to say too.",
                "description": "HTTP on a Unix socket that only its owner can open: \
                    `curl --unix-socket \"$(bitmesh config path socket)\" http://bitmesh/v1/status`. \
                    Amounts are integers and the name of a field carries its unit; ids are strings; \
                    moments are RFC 3339 in UTC; spans are seconds. Within version 1 fields are added \
                    and never removed: skip what you do not know.",
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "servers": [{ "url": "http://bitmesh", "description": "Over the Unix socket; the name is not looked up." }],
            "paths": paths,
            "components": {
                "schemas": generator.take_definitions(true),
                "responses": { "Error": {
                    "description": format!("The call failed. Status and code: {}.", statuses.join(", ")),
                    "content": { "application/json": { "schema": error } },
                } },
            },
        });
        format!("{}\n", serde_json::to_string_pretty(&document).unwrap())
    }

    #[test]
    fn the_document_describes_every_route_and_every_field() {
        let written = written();
        if std::env::var_os("BITMESH_BLESS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
            std::fs::write(path, &written).unwrap();
        } else {
            assert!(
                written == DOCUMENT,
                "docs/openapi.json is not what api.rs says; \
                 write it anew with BITMESH_BLESS=1 cargo test -p bitmesh-node openapi"
            );
        }
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere_and_everything_is_explained() {
        fn walk(value: &Value, document: &Value, path: &str) {
            match value {
                Value::Object(map) => {
                    if let Some(target) = map.get("$ref") {
                        let pointer = target.as_str().unwrap().trim_start_matches('#');
                        assert!(document.pointer(pointer).is_some(), "{path}: {pointer}");
                    }
                    for (key, inner) in map {
                        let place = format!("{path}/{key}");
                        if key == "properties" {
                            for (field, schema) in inner.as_object().unwrap() {
                                let tag = schema.get("const").is_some();
                                let said = schema.get("description").is_some();
                                assert!(tag || said, "{place}/{field} has no description");
                            }
                        }
                        walk(inner, document, &place);
                    }
                }
                Value::Array(items) => {
                    items.iter().for_each(|item| walk(item, document, path));
                }
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        walk(&document, &document, "");
    }
}
