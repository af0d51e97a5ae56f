//! The JSON Schema of the language in the form that the structural pass walks: what is derived from the types of
//! [`crate::topology`] is the only description of the language there is.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::topology::Topology;
use crate::units::{Bytes, Percent, Rate, Span};

/// What a value may be.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// Whatever JSON can say.
    Any,
    Text,
    Quantity(Quantity),
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        min: f64,
        max: f64,
    },
    /// One of these words.
    Words {
        owner: String,
        words: Vec<String>,
    },
    List {
        of: Box<Shape>,
        /// How many items it has.
        min: usize,
        max: usize,
    },
    /// Keys of the operator's choice.
    Map(Box<Shape>),
    Record(Record),
    /// A map with exactly one of these keys.
    Choice {
        owner: String,
        variants: Vec<(String, Shape)>,
    },
    /// Shapes that differ by the type of the value.
    Either(Vec<Shape>),
    /// May be left empty.
    Optional(Box<Shape>),
}

/// A map with known keys.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// The name of its type.
    pub(crate) owner: String,
    pub(crate) fields: BTreeMap<String, Shape>,
    pub(crate) required: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantity {
    Duration,
    Size,
    Percent,
    Rate,
}

impl Quantity {
    fn of_format(format: &str) -> Option<Self> {
        match format {
            "duration-text" => Some(Self::Duration),
            "size" => Some(Self::Size),
            "percent" => Some(Self::Percent),
            "rate" => Some(Self::Rate),
            _ => None,
        }
    }

    /// # Errors
    ///
    /// What is wrong with `text`, in the words of [`crate::units`].
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Duration => text.parse::<Span>().map(drop),
            Self::Size => text.parse::<Bytes>().map(drop),
            Self::Percent => text.parse::<Percent>().map(drop),
            Self::Rate => text.parse::<Rate>().map(drop),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Duration => "a duration such as 150ms",
            Self::Size => "a size such as 64KiB",
            Self::Percent => "a percentage such as 20%",
            Self::Rate => "a rate such as 500/s",
        }
    }

    /// What is probably missing behind a bare number.
    pub(crate) fn units(self) -> &'static [&'static str] {
        match self {
            Self::Duration => &["ms", "s"],
            Self::Size => &["MiB", "B"],
            Self::Percent => &["%"],
            Self::Rate => &["/s"],
        }
    }
}

/// The language.
pub(crate) struct Language {
    pub(crate) root: Shape,
    /// Every known key with the paths at which it may stand: `interval` at `services.NAME.health.interval`.
    pub(crate) keys: BTreeMap<String, Vec<String>>,
}

pub(crate) static LANGUAGE: LazyLock<Language> = LazyLock::new(|| {
    let schema = schemars::schema_for!(Topology).to_value();
    let root = compile("Topology", &schema, &schema["$defs"]);
    let mut keys = BTreeMap::new();
    collect_keys(&root, String::new(), &mut keys);
    Language { root, keys }
});

fn compile(owner: &str, schema: &Value, definitions: &Value) -> Shape {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return compile(name, &definitions[name], definitions);
    }
    if let Some(variants) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        return compile_variants(owner, variants, definitions);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let shape = match types.iter().find(|name| **name != "null") {
        Some(&"boolean") => Shape::Bool,
        Some(&"integer") => {
            let unsigned = schema["format"].as_str().is_some_and(|format| format.starts_with("uint"));
            let lowest = if unsigned { 0 } else { i64::MIN };
            Shape::Integer {
                min: schema["minimum"].as_i64().unwrap_or(lowest),
                max: schema["maximum"].as_i64().unwrap_or(if unsigned { i64::from(u32::MAX) } else { i64::MAX }),
            }
        }
        Some(&"number") => Shape::Number {
            min: schema["minimum"].as_f64().unwrap_or(f64::MIN),
            max: schema["maximum"].as_f64().unwrap_or(f64::MAX),
        },
        Some(&"array") => {
            let length = |key: &str| schema[key].as_u64().and_then(|count| usize::try_from(count).ok());
            Shape::List {
                of: Box::new(compile(owner, &schema["items"], definitions)),
                min: length("minItems").unwrap_or(0),
                max: length("maxItems").unwrap_or(usize::MAX),
            }
        }
        Some(&"object") => compile_object(owner, schema, definitions),
        _ => match schema["enum"].as_array() {
            Some(words) => Shape::Words { owner: owner.into(), words: texts(words) },
            None if types.is_empty() => Shape::Any,
            None => schema["format"].as_str().and_then(Quantity::of_format).map_or(Shape::Text, Shape::Quantity),
        },
    };
    if types.contains(&"null") { Shape::Optional(Box::new(shape)) } else { shape }
}

fn compile_object(owner: &str, schema: &Value, definitions: &Value) -> Shape {
    match schema["properties"].as_object() {
        Some(properties) => Shape::Record(Record {
            owner: owner.into(),
            fields: properties.iter().map(|(key, of)| (key.clone(), compile(owner, of, definitions))).collect(),
            required: schema["required"].as_array().map(|keys| texts(keys)).unwrap_or_default(),
        }),
        None if schema["additionalProperties"].is_object() => {
            Shape::Map(Box::new(compile(owner, &schema["additionalProperties"], definitions)))
        }
        None => Shape::Record(Record { owner: owner.into(), fields: BTreeMap::new(), required: Vec::new() }),
    }
}

fn compile_variants(owner: &str, variants: &[Value], definitions: &Value) -> Shape {
    let is_null = |variant: &&Value| variant["type"] == "null";
    let optional = variants.iter().any(|variant| is_null(&variant));
    let variants: Vec<&Value> = variants.iter().filter(|variant| !is_null(variant)).collect();
    let words: Vec<String> = variants.iter().filter_map(|variant| variant["const"].as_str()).map(Into::into).collect();
    let tagged: Vec<(String, Shape)> =
        variants.iter().filter_map(|variant| tagged(owner, variant, definitions)).collect();
    let shape = if words.len() == variants.len() {
        Shape::Words { owner: owner.into(), words }
    } else if tagged.len() == variants.len() {
        Shape::Choice { owner: owner.into(), variants: tagged }
    } else {
        let mut shapes: Vec<Shape> = variants.iter().map(|variant| compile(owner, variant, definitions)).collect();
        if shapes.len() == 1 { shapes.remove(0) } else { Shape::Either(shapes) }
    };
    if optional { Shape::Optional(Box::new(shape)) } else { shape }
}

/// A variant of an externally tagged enum is an object with one required key and no other.
fn tagged(owner: &str, variant: &Value, definitions: &Value) -> Option<(String, Shape)> {
    let properties = variant["properties"].as_object().filter(|properties| properties.len() == 1)?;
    variant["required"].as_array()?;
    let (key, of) = properties.iter().next()?;
    Some((key.clone(), compile(owner, of, definitions)))
}

fn texts(values: &[Value]) -> Vec<String> {
    values.iter().filter_map(Value::as_str).map(Into::into).collect()
}

fn collect_keys(shape: &Shape, at: String, keys: &mut BTreeMap<String, Vec<String>>) {
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match shape {
        Shape::Record(record) => {
            for (key, shape) in &record.fields {
                let path = below(key);
                keys.entry(key.clone()).or_default().push(path.clone());
                collect_keys(shape, path, keys);
            }
        }
        Shape::Choice { variants, .. } => {
            for (key, shape) in variants {
                let path = below(key);
                keys.entry(key.clone()).or_default().push(path.clone());
                collect_keys(shape, path, keys);
            }
        }
        Shape::Map(shape) => collect_keys(shape, below("NAME"), keys),
        Shape::List { of, .. } => collect_keys(of, format!("{at}[]"), keys),
        Shape::Optional(shape) => collect_keys(shape, at, keys),
        Shape::Either(shapes) => shapes.iter().for_each(|shape| collect_keys(shape, at.clone(), keys)),
        _ => {}
    }
}

impl Shape {
    /// Whether nothing at all is a value of it: a map of which every key may be left out.
    pub(crate) fn may_be_empty(&self) -> bool {
        match self {
            Self::Record(record) => record.required.is_empty(),
            Self::List { min, .. } => *min == 0,
            Self::Map(_) | Self::Optional(_) => true,
            _ => false,
        }
    }

    /// In words, with an article.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Any => "anything".into(),
            Self::Text => "text".into(),
            Self::Quantity(quantity) => quantity.name().into(),
            Self::Bool => "true or false".into(),
            Self::Integer { .. } => "a whole number".into(),
            Self::Number { .. } => "a number".into(),
            Self::Words { words, .. } => super::report::one_of(words.iter().map(String::as_str)),
            Self::List { .. } => "a list".into(),
            Self::Map(_) | Self::Record(_) => "a map".into(),
            Self::Choice { variants, .. } => {
                let keys = super::report::one_of(variants.iter().map(|(key, _)| key.as_str()));
                format!("a map with {keys}")
            }
            Self::Either(shapes) => {
                let mut words: Vec<String> = Vec::new();
                for shape in shapes {
                    let word = shape.describe();
                    if !words.contains(&word) {
                        words.push(word);
                    }
                }
                words.join(" or ")
            }
            Self::Optional(shape) => shape.describe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'s>(shape: &'s Shape, path: &[&str]) -> &'s Shape {
        match (shape, path) {
            (Shape::Optional(shape), _) => at(shape, path),
            (shape, []) => shape,
            (Shape::Record(record), [key, rest @ ..]) => at(&record.fields[*key], rest),
            (Shape::Map(shape) | Shape::List { of: shape, .. }, [_, rest @ ..]) => at(shape, rest),
            (Shape::Choice { variants, .. }, [key, rest @ ..]) => {
                at(&variants.iter().find(|(name, _)| name == key).expect("variant").1, rest)
            }
            _ => panic!("{path:?}"),
        }
    }

    #[test]
    fn every_kind_of_the_language_is_understood() {
        let root = &LANGUAGE.root;
        assert!(matches!(at(root, &["services", "a", "port"]), Shape::Either(shapes) if shapes.len() == 2));
        assert!(matches!(at(root, &["services", "a", "replicas"]), Shape::Integer { min: 0, max: 1000 }));
        assert!(matches!(at(root, &["services", "a", "resources", "cpu"]), Shape::Number { .. }));
        assert!(matches!(at(root, &["services", "a", "startTimeout"]), Shape::Quantity(Quantity::Duration)));
        assert!(matches!(at(root, &["services", "a", "health", "tcp"]), Shape::Bool));
        assert!(matches!(at(root, &["services", "a", "env", "X"]), Shape::Either(_)));
        assert!(matches!(at(root, &["providers", "gateway"]), Shape::Choice { .. }));
        assert!(matches!(at(root, &["providers", "gateway", "embedded", "listen"]), Shape::Text));
        assert!(matches!(at(root, &["providers", "mesh"]), Shape::Words { .. }));
        assert!(matches!(at(root, &["routes", "0", "to"]), Shape::Either(_)));
        let backoff = at(root, &["channels", "c", "subscriptions", "s", "retry", "backoff"]);
        assert!(matches!(backoff, Shape::List { of, min: 1, max: 16 } if matches!(**of, Shape::Quantity(_))));
        assert!(matches!(at(root, &["services", "a", "publishes"]), Shape::List { min: 0, max: usize::MAX, .. }));
        assert!(matches!(at(root, &["flows", "f", "synchronous", "body"]), Shape::Any));
        assert_eq!(LANGUAGE.keys["interval"], ["services.NAME.health.interval"]);
    }
}
