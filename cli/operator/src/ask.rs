//! Questions. Only a person is asked; a script has said what it wants.

use std::io::{self, BufRead, Write};

use crate::output;

/// Asks a yes-or-no question where there is somebody to ask; agreed where there is nobody.
pub(crate) fn agreed(question: &str) -> bool {
    if !output::interactive() {
        return true;
    }
    matches!(answer(&format!("{question} [y/N] ")).to_lowercase().as_str(), "y" | "yes")
}

/// Asks for `word` to be typed.
pub(crate) fn typed(question: &str, word: &str) -> bool {
    answer(&format!("{question} Type {word} to go on: ")) == word
}

fn answer(question: &str) -> String {
    let mut line = String::new();
    let asked = write!(anstream::stderr().lock(), "{question}").and_then(|()| io::stderr().flush());
    if asked.is_ok() && io::stdin().lock().read_line(&mut line).is_err() {
        line.clear();
    }
    line.trim().to_owned()
}
