//! A line that is being typed.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Input {
    text: String,
    /// In characters, at most their number.
    cursor: usize,
}

impl Input {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { cursor: text.chars().count(), text }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What stands before the cursor.
    pub(crate) fn before(&self) -> &str {
        &self.text[..self.byte(self.cursor)]
    }

    fn byte(&self, cursor: usize) -> usize {
        self.text.char_indices().nth(cursor).map_or(self.text.len(), |(at, _)| at)
    }

    pub(crate) fn insert(&mut self, text: &str) {
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.text.insert_str(self.byte(self.cursor), &text);
        self.cursor += text.chars().count();
    }

    fn remove(&mut self, from: usize, to: usize) {
        self.text.replace_range(self.byte(from)..self.byte(to), "");
        self.cursor = from;
    }

    /// Takes a key as readline does; false where it is none of its keys.
    pub(crate) fn press(&mut self, key: KeyEvent) -> bool {
        let length = self.text.chars().count();
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('u') if ctrl => self.remove(0, self.cursor),
            KeyCode::Char('w') if ctrl => {
                let before = self.before().trim_end();
                let start = before.rfind(' ').map_or(0, |at| before[..=at].chars().count());
                self.remove(start, self.cursor);
            }
            KeyCode::Char('a') if ctrl => self.cursor = 0,
            KeyCode::Char('e') if ctrl => self.cursor = length,
            KeyCode::Char(c) if !ctrl => self.insert(&c.to_string()),
            KeyCode::Backspace if self.cursor > 0 => self.remove(self.cursor - 1, self.cursor),
            KeyCode::Delete if self.cursor < length => self.remove(self.cursor, self.cursor + 1),
            KeyCode::Left => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::Right => self.cursor = (self.cursor + 1).min(length),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = length,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited() {
        let mut input = Input::new("why nöt");
        let mut press = |code, ctrl| {
            let modifiers = if ctrl { KeyModifiers::CONTROL } else { KeyModifiers::NONE };
            input.press(KeyEvent::new(code, modifiers));
            input.clone()
        };
        assert_eq!(press(KeyCode::Left, false).before(), "why nö");
        assert_eq!(press(KeyCode::Backspace, false).text(), "why nt");
        assert_eq!(press(KeyCode::Char('o'), false).text(), "why not");
        press(KeyCode::End, false);
        assert_eq!(press(KeyCode::Char('w'), true).text(), "why ");
        assert_eq!(press(KeyCode::Char('u'), true).text(), "");
        assert_eq!(press(KeyCode::Backspace, false).text(), "", "nothing is left to take");
        input.insert("a\nb");
        assert_eq!(input.text(), "a b", "a pasted line end confirms nothing");
    }
}
