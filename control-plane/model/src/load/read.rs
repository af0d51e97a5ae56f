//! From text to [`Tree`]: one pass over the events of the YAML parser, which stops as soon as a limit is passed, so that
//! no text costs more than its limit allows.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::Sources;
use super::interpolate::{Piece, pieces};
use super::report::{Report, quoted, words};
use super::tree::{Data, Entry, Kind, Map, NodeId, Place, Scalar, Tree, Weight};
use crate::finding::{
    BAD_KEY, BAD_VARIABLE, Code, DUPLICATE_KEY, SELF_REFERENCE, SYNTAX, TOO_DEEP, TOO_LARGE, UNSET_VARIABLE,
    UNSUPPORTED_TAG,
};

/// All texts together.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// Keys and values of all files together, with every alias written out: four thousand services of an ordinary kind, which.
/// are judged well within 50 ms on one core.
pub(crate) const MAX_NODES: u64 = 50_000;
/// The text of all values together, with every alias and variable written out.
const MAX_TEXT: u64 = 4 << 20;
/// Lists and maps inside of each other.
const MAX_DEPTH: u32 = 64;
/// Anchors of one text; each costs the parser more than a value does.
const MAX_ANCHORS: usize = 1_000;
/// Tokens of one text. The scanner looks ahead to the end of a `[` before it hands over what stands inside, so this is
/// counted, roughly and upwards, before it begins.
const MAX_TOKENS: u64 = 2 * MAX_NODES;

/// The end of a file that is not worth reading further; the finding has been made.
struct Stopped;

/// Reads every document of every file into `tree`; nothing if one of them cannot be read to its end.
pub(crate) fn read(sources: &Sources, tree: &mut Tree, report: &mut Report<'_>) -> Option<Vec<NodeId>> {
    let mut documents = Vec::new();
    let mut complete = true;
    let (mut bytes, mut spent) = (0, Weight::default());
    for (file, source) in sources.files.iter().enumerate() {
        bytes += source.text.len();
        let start = Place { file: file as u32, line: 1, column: 1, end_line: 1, end_column: 1 };
        if bytes > MAX_BYTES {
            report.add(TOO_LARGE, start, || {
                words("the files are larger than 1 MiB together", "split the system into several topologies")
            });
            return None;
        }
        // The byte order mark is no part of the first line; the scanner counts it as a column.
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        let mut reader = Reader {
            text,
            start,
            environment: &sources.environment,
            tree,
            report,
            open: Vec::new(),
            anchors: HashMap::new(),
            spent,
            cursor: Cursor::default(),
            documents: &mut documents,
        };
        complete &= reader.run().is_ok();
        spent = reader.spent;
    }
    complete.then_some(documents)
}

/// The names of the variables that the values of `file` mention.
pub(crate) fn variables(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    if text.len() > MAX_BYTES || token_overflow(text).is_some() {
        return names;
    }
    let mut parser = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut left = 4 * MAX_NODES;
    while let Some(Ok((event, _))) = parser.next_event() {
        if let Event::Scalar(value, ..) = event {
            names.extend(pieces(&value).filter_map(|piece| match piece {
                Piece::Variable { name, .. } => Some(name.to_owned()),
                _ => None,
            }));
        }
        left -= 1;
        if left == 0 {
            break;
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// The byte at which `text` may have more than [`MAX_TOKENS`] tokens.
fn token_overflow(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut tokens, mut before) = (0, b' ');
    for (at, byte) in bytes.iter().enumerate() {
        let alone = || matches!(before, b' ' | b'\t' | b'\n' | b'\r' | b',' | b'[' | b'{');
        let token = match byte {
            b',' | b'[' | b'{' | b']' | b'}' | b':' => true,
            b'-' | b'?' | b'&' | b'*' | b'!' | b'"' | b'\'' | b'%' => alone(),
            _ => false,
        };
        if token {
            tokens += 1;
            if tokens > MAX_TOKENS {
                return Some(at);
            }
        }
        before = *byte;
    }
    None
}

/// A list or map whose end has not come yet.
struct Open {
    start: Place,
    anchor: usize,
    /// It has a tag that says what it cannot be.
    broken: bool,
    parts: Parts,
}

enum Parts {
    List(Vec<NodeId>),
    Map { entries: Vec<Entry>, key: Option<(Box<str>, Place)> },
}

struct Reader<'a, 's> {
    text: &'a str,
    start: Place,
    environment: &'a BTreeMap<String, String>,
    tree: &'a mut Tree,
    report: &'a mut Report<'s>,
    open: Vec<Open>,
    anchors: HashMap<usize, NodeId>,
    spent: Weight,
    cursor: Cursor,
    documents: &'a mut Vec<NodeId>,
}

impl<'a> Reader<'a, '_> {
    fn run(&mut self) -> Result<(), Stopped> {
        if let Some(at) = token_overflow(self.text) {
            let place = advance(self.start, &self.text[..at]);
            return Err(self.too_large(place));
        }
        let mut parser: Parser<'a, StrInput<'a>> = Parser::new_from_str(self.text);
        while let Some(event) = parser.next_event() {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => return Err(self.syntax(&error)),
            };
            let place = self.place(span.start, span.end);
            if let Event::Scalar(_, _, anchor, _) | Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) =
                event
                && anchor > MAX_ANCHORS
            {
                let message = format!("this file has more than {MAX_ANCHORS} anchors");
                return Err(self.stop(TOO_LARGE, place, message, "keep the anchors that an alias needs"));
            }
            match event {
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    self.spend(Weight { nodes: 1, ..Weight::default() }, place)?;
                }
                Event::Scalar(value, style, anchor, tag) => {
                    let key = self.wants_key();
                    if key {
                        self.spend(Weight { nodes: 1, bytes: value.len() as u64, height: 0 }, place)?;
                        self.key(value.as_ref().into(), place);
                    }
                    if !key || anchor > 0 {
                        let node = self.scalar(&value, style, tag.as_deref(), place, span.start.index())?;
                        if key {
                            self.anchors.insert(anchor, node);
                        } else {
                            self.finish(node, anchor);
                        }
                    }
                }
                Event::SequenceStart(anchor, tag) => {
                    self.begin(Parts::List(Vec::new()), anchor, tag.as_deref(), "seq", place)?;
                }
                Event::MappingStart(anchor, tag) => {
                    let parts = Parts::Map { entries: Vec::new(), key: None };
                    self.begin(parts, anchor, tag.as_deref(), "map", place)?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.end(place),
                Event::Alias(anchor) => self.alias(anchor, place)?,
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            }
        }
        Ok(())
    }

    fn place(&self, start: saphyr_parser::Marker, end: saphyr_parser::Marker) -> Place {
        Place {
            file: self.start.file,
            line: start.line() as u32,
            column: start.col() as u32 + 1,
            end_line: end.line() as u32,
            end_column: end.col() as u32 + 1,
        }
    }

    fn stop(&mut self, code: Code, place: Place, message: impl Into<String>, help: &str) -> Stopped {
        self.report.add(code, place, || words(message, help));
        Stopped
    }

    fn syntax(&mut self, error: &ScanError) -> Stopped {
        let place = self.place(*error.marker(), *error.marker());
        // The scanner has a limit of its own and looks ahead, so it may come first.
        if error.info().contains("recursion limit") {
            return self.too_deep(place);
        }
        let line = self.text.lines().nth(error.marker().line().saturating_sub(1)).unwrap_or_default();
        let help = if line.contains("${") && line.contains(['[', '{']) {
            "inside of [ ] and { } a variable needs quotes: \"${NAME}\""
        } else if self
            .text
            .lines()
            .skip(error.marker().line().saturating_sub(1))
            .take(2)
            .any(|line| line.starts_with('\t'))
        {
            "indent with spaces: YAML takes no tabs there"
        } else {
            "look at the indentation, and put text with special characters in quotes"
        };
        self.stop(SYNTAX, place, format!("this is not YAML: {}", error.info()), help)
    }

    fn too_deep(&mut self, place: Place) -> Stopped {
        let message = format!("lists and maps are nested more than {MAX_DEPTH} deep");
        self.stop(TOO_DEEP, place, message, "no part of the language is deeper than ten")
    }

    fn too_large(&mut self, place: Place) -> Stopped {
        let message =
            format!("the topology has more than {MAX_NODES} keys and values, or more than 4 MiB of text, up to here");
        self.stop(
            TOO_LARGE,
            place,
            message,
            "split the system into several topologies; aliases and variables count as if they were written out",
        )
    }

    fn spend(&mut self, weight: Weight, place: Place) -> Result<(), Stopped> {
        self.spent.nodes = self.spent.nodes.saturating_add(weight.nodes);
        self.spent.bytes = self.spent.bytes.saturating_add(weight.bytes);
        if self.spent.nodes > MAX_NODES || self.spent.bytes > MAX_TEXT {
            return Err(self.too_large(place));
        }
        if self.open.len() as u32 + weight.height > MAX_DEPTH {
            return Err(self.too_deep(place));
        }
        Ok(())
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { parts: Parts::Map { key: None, .. }, .. }))
    }

    fn key(&mut self, text: Box<str>, place: Place) {
        if let Some(Open { parts: Parts::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((text, place));
        }
    }

    fn begin(
        &mut self,
        parts: Parts,
        anchor: usize,
        tag: Option<&Tag>,
        known_tag: &str,
        place: Place,
    ) -> Result<(), Stopped> {
        if self.wants_key() {
            return Err(self.bad_key(place));
        }
        let broken = tag.is_some_and(|tag| !(tag.is_yaml_core_schema() && tag.suffix == known_tag));
        if broken {
            self.unsupported(tag, place);
        }
        self.spend(Weight { nodes: 1, bytes: 0, height: 1 }, place)?;
        self.open.push(Open { start: place, anchor, broken, parts });
        Ok(())
    }

    fn end(&mut self, end: Place) {
        let Some(Open { start, anchor, broken, parts }) = self.open.pop() else { return };
        // A block ends where the next thing begins, lines below: what is underlined is its first character.
        let flow = (end.end_line, end.end_column) != (end.line, end.column);
        let place = if flow {
            Place { end_line: end.end_line, end_column: end.end_column, ..start }
        } else {
            Place { end_line: start.line, end_column: start.column + 1, ..start }
        };
        let data = match parts {
            _ if broken => Data::Scalar(Scalar { text: "".into(), kind: Kind::Broken }),
            Parts::List(items) => Data::List(items.into()),
            Parts::Map { entries, .. } => {
                let map = Map::new(entries);
                for (first, second) in map.repetitions() {
                    let first = self.report.locate(first.place);
                    self.report.add(DUPLICATE_KEY, second.place, || {
                        words(
                            format!("{} stands here twice, first at {first}", quoted(&second.key)),
                            "keep one of them",
                        )
                    });
                }
                Data::Map(map)
            }
        };
        let node = self.tree.push(place, data);
        self.finish(node, anchor);
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: NodeId, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node);
        }
        match self.open.last_mut() {
            None => self.documents.push(node),
            Some(Open { parts: Parts::List(items), .. }) => items.push(node),
            Some(Open { parts: Parts::Map { entries, key }, .. }) => {
                if let Some((key, place)) = key.take() {
                    entries.push(Entry { key, place, value: node });
                }
            }
        }
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Stopped> {
        if self.wants_key() {
            return Err(self.bad_key(place));
        }
        let Some(node) = self.anchors.get(&anchor).copied() else {
            return Err(self.stop(
                SELF_REFERENCE,
                place,
                "this alias stands inside of what it refers to",
                "write the value out",
            ));
        };
        self.spend(self.tree.node(node).weight, place)?;
        self.finish(node, 0);
        Ok(())
    }

    fn bad_key(&mut self, place: Place) -> Stopped {
        self.stop(
            BAD_KEY,
            place,
            "a key must be text, not a list, a map or an alias",
            "if this is a value, put it in quotes",
        )
    }

    fn unsupported(&mut self, tag: Option<&Tag>, place: Place) {
        let tag = tag.map(|tag| {
            if tag.handle == "!" { format!("!{}", tag.suffix) } else { format!("!<{}{}>", tag.handle, tag.suffix) }
        });
        self.report.add(UNSUPPORTED_TAG, place, || {
            words(
                format!("the tag {} means nothing here", quoted(&tag.unwrap_or_default())),
                "leave it out; a choice is written as a key: `{ process: {} }`",
            )
        });
    }

    fn scalar(
        &mut self,
        written: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        place: Place,
        index: usize,
    ) -> Result<NodeId, Stopped> {
        let plain = match tag {
            None => style == ScalarStyle::Plain,
            Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
                "str" => false,
                "null" | "bool" | "int" | "float" => true,
                _ => {
                    self.unsupported(Some(tag), place);
                    false
                }
            },
            Some(tag) => {
                if tag.handle != "!" || !tag.suffix.is_empty() {
                    self.unsupported(Some(tag), place);
                }
                false
            }
        };
        let filled = if written.contains('$') { self.fill(written, place, index)? } else { Some(written.into()) };
        let place = trimmed(place, style);
        let scalar = match filled {
            None => Scalar { text: written.into(), kind: Kind::Broken },
            Some(text) => {
                let kind = match Kind::of_plain(&text) {
                    // A variable that is empty is an empty text, not the absence of a value.
                    Kind::Null if plain && written == &*text => Kind::Null,
                    Kind::Null => Kind::Text,
                    kind if plain => kind,
                    _ => Kind::Text,
                };
                Scalar { text, kind }
            }
        };
        self.spend(Weight { nodes: 1, bytes: scalar.text.len() as u64, height: 0 }, place)?;
        Ok(self.tree.push(place, Data::Scalar(scalar)))
    }

    /// `written` with its variables filled in; nothing if one of them cannot be.
    fn fill(&mut self, written: &str, place: Place, index: usize) -> Result<Option<Box<str>>, Stopped> {
        let mut marks = Marks::new(place, written, self.cursor.seek(self.text, index));
        let mut filled = String::new();
        let (mut complete, mut variable) = (true, false);
        for piece in pieces(written) {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Wrong { at, why } => {
                    complete = false;
                    let at = marks.locate(at);
                    self.report.add(BAD_VARIABLE, at, || {
                        words(
                            format!("this variable cannot be read: {why}"),
                            "write ${NAME}, ${NAME:-default}, ${NAME-default} or ${NAME:?message}; $$ is a dollar",
                        )
                    });
                }
                Piece::Variable { name, otherwise, at } => match otherwise.fill(name, self.environment) {
                    Ok(value) => {
                        variable = true;
                        filled.push_str(value);
                        if filled.len() as u64 > MAX_TEXT {
                            return Err(self.too_large(place));
                        }
                    }
                    Err(message) => {
                        complete = false;
                        let at = marks.locate(at);
                        self.report.add(UNSET_VARIABLE, at, || unset(name, message));
                    }
                },
            }
        }
        if !complete {
            self.spend(Weight { nodes: 0, bytes: filled.len() as u64, height: 0 }, place)?;
            return Ok(None);
        }
        if variable && !filled.is_empty() {
            self.tree.remember_filled(&filled, written);
        }
        Ok(Some(filled.into()))
    }
}

fn unset(name: &str, message: &str) -> (String, String) {
    let what = format!("the variable {} is not set", quoted(name));
    let message = if message.is_empty() { what } else { format!("{what}: {}", quoted(message).replace('`', "")) };
    let remedy = format!("set it (`export {name}=…`), or write a default: ${{{name}:-…}}");
    words(message, remedy)
}

/// Finds the `${` of a value in the file, going forward only. Value and source have the same ones in the same order, unless
/// a `$` is written as an escape; then it is the place of the whole value.
struct Marks<'t> {
    whole: Place,
    /// The value that is not searched yet, and how much of it is.
    value: &'t str,
    searched: usize,
    /// The file from the last `${` that was found, and where that stands.
    source: &'t str,
    here: Place,
}

impl<'t> Marks<'t> {
    fn new(whole: Place, value: &'t str, source: &'t str) -> Self {
        let here = Place { end_line: whole.line, end_column: whole.column, ..whole };
        Self { whole, value, searched: 0, source, here }
    }

    /// The place of the `${` at the byte `at` of the value.
    fn locate(&mut self, at: usize) -> Place {
        // Longer than any name; a variable without an end is only underlined so far.
        const LONGEST: usize = 200;
        if self.source.is_empty() {
            return self.whole;
        }
        let (skipped, rest) = self.value.split_at(at - self.searched);
        let found = self.source.match_indices("${").nth(skipped.matches("${").count());
        let end = (self.whole.end_line, self.whole.end_column);
        let place = found.map(|(offset, _)| (offset, advance(self.here, &self.source[..offset])));
        let Some((offset, start)) = place.filter(|(_, start)| (start.line, start.column) < end) else {
            // What has lost its way once is not found again.
            self.source = "";
            return self.whole;
        };
        (self.value, self.searched) = (rest, at);
        (self.source, self.here) = (&self.source[offset..], start);
        let length = self.source.chars().take(LONGEST).position(|c| c == '}').map_or(2, |end| end + 1);
        Place { end_column: start.column + length as u32, ..start }
    }
}

/// The place after `text`.
fn advance(from: Place, text: &str) -> Place {
    let lines = text.matches('\n').count() as u32;
    let last = text.rsplit('\n').next().unwrap_or_default().chars().count() as u32;
    let column = if lines == 0 { from.column + last } else { last + 1 };
    Place { line: from.line + lines, column, end_line: from.line + lines, end_column: column, ..from }
}

/// A block scalar ends where the next thing begins: what is underlined is its `|` or `>`.
fn trimmed(place: Place, style: ScalarStyle) -> Place {
    match style {
        ScalarStyle::Literal | ScalarStyle::Folded => {
            Place { end_line: place.line, end_column: place.column + 1, ..place }
        }
        _ => place,
    }
}

/// From characters to bytes, going forward only, so that a whole file costs one pass.
#[derive(Default)]
struct Cursor {
    characters: usize,
    bytes: usize,
}

impl Cursor {
    fn seek<'t>(&mut self, text: &'t str, index: usize) -> &'t str {
        if index > self.characters {
            let rest = &text[self.bytes..];
            let skip = rest.char_indices().nth(index - self.characters).map_or(rest.len(), |(at, _)| at);
            self.bytes += skip;
            self.characters = index;
        }
        &text[self.bytes..]
    }
}
