//! The JSON Schema of the topology language for editors. It is the derived one, widened by what the loader takes beside
//! it: `${NAME}` in place of any value, a bare word for a choice, nothing for a map of which all may be left out.

use serde_json::{Map, Value, json};

use crate::topology::Topology;

/// A text that is or contains a variable.
const VARIABLE: &str = r"\$\{";

/// JSON Schema, draft 2020-12.
pub fn topology_schema() -> Value {
    let mut schema = schemars::schema_for!(Topology).to_value();
    let definitions = schema["$defs"].clone();
    widen(&mut schema, &definitions);
    schema["type"] = json!("object");
    schema["$id"] = json!("urn:meshctl:v1:topology");
    schema
}

/// [`topology_schema`] as `meshctl schema` prints it: title and description first, a line break at the end.
pub fn topology_schema_text() -> String {
    let value = topology_schema();
    let text = match schemars::Schema::try_from(value.clone()) {
        Ok(schema) => serde_json::to_string_pretty(&schema),
        Err(_) => serde_json::to_string_pretty(&value),
    };
    text.unwrap_or_default() + "\n"
}

fn widen(schema: &mut Value, definitions: &Value) {
    let Value::Object(object) = schema else { return };
    // The descriptions say the defaults; the derived ones are `null`.
    object.remove("default");
    for key in ["properties", "$defs"] {
        for part in object.get_mut(key).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
            widen(part, definitions);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(part) = object.get_mut(key) {
            widen(part, definitions);
        }
    }
    let words = bare_words(object, definitions);
    for key in ["anyOf", "oneOf"] {
        for part in object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            // A variant of an enum stays as it is: the variable is taken beside all of them.
            match part {
                Value::Object(variant) if !variant.contains_key("const") => widen(part, definitions),
                _ => {}
            }
        }
    }
    let types: Vec<String> = match object.get("type") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).map(Into::into).collect(),
        _ => Vec::new(),
    };
    let is = |name: &str| types.iter().any(|of| of == name);
    if is("integer") || is("number") || is("boolean") {
        alternative(object, json!({ "type": "string", "pattern": VARIABLE }));
    } else if let Some(Value::String(pattern)) = object.get_mut("pattern") {
        *pattern = format!("{pattern}|{VARIABLE}");
        // Editors know other formats only, and some complain about ours.
        object.remove("format");
    } else if (is("object") && !object.contains_key("required")) || is("array") {
        object.insert("type".into(), json!([types[0], "null"]));
    } else if let Some(words) = words {
        alternative(object, words);
    }
}

/// What may stand in place of the variants of an enum.
fn bare_words(object: &Map<String, Value>, definitions: &Value) -> Option<Value> {
    let variants = object.get("oneOf")?.as_array()?;
    let variable = json!({ "type": "string", "pattern": VARIABLE });
    if variants.iter().all(|variant| variant.get("const").is_some()) {
        return Some(variable);
    }
    let may_be_empty = |of: &Value| {
        let name = of["$ref"].as_str().and_then(|path| path.rsplit('/').next())?;
        definitions[name]["required"].is_null().then_some(())
    };
    let words: Vec<&String> = variants
        .iter()
        .filter_map(|variant| variant["properties"].as_object()?.iter().next())
        .filter_map(|(word, of)| may_be_empty(of).map(|()| word))
        .collect();
    (!words.is_empty()).then(|| json!({ "anyOf": [{ "enum": words }, variable] }))
}

/// Makes `object` one of two: what it was, or `other`. Its description stays outside, where editors look.
fn alternative(object: &mut Map<String, Value>, other: Value) {
    let description = object.remove("description");
    let before = Value::Object(std::mem::take(object));
    if let Some(description) = description {
        object.insert("description".into(), description);
    }
    object.insert("anyOf".into(), json!([before, other]));
}
