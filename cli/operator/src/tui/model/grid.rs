//! Rows under columns: what a list is once it is filtered, sorted and measured. Made when something changed; a frame only
//! draws the rows that are in sight.

use std::cmp::Ordering;

use unicode_width::UnicodeWidthStr;

use super::views::View;

/// What a piece of text means, in the order of how much it wants to be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    Faint,
    #[default]
    Plain,
    Strong,
    Good,
    Careful,
    Bad,
}

/// A column: its title, which side it leans to, and how readily it gives way where the terminal is narrow (0 never).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) right: bool,
    pub(crate) rank: u8,
}

pub(crate) const fn text(title: &'static str, rank: u8) -> Column {
    Column { title, right: false, rank }
}

pub(crate) const fn number(title: &'static str, rank: u8) -> Column {
    Column { title, right: true, rank }
}

/// Text, what it means, and the number that it is sorted by where it is one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) tone: Tone,
    pub(crate) key: Option<f64>,
}

impl Cell {
    /// One line, and nothing that could move the cursor.
    pub(crate) fn new(text: impl ToString) -> Self {
        let mut text = text.to_string();
        if text.contains(char::is_control) {
            text = text.replace(char::is_control, " ");
        }
        Self { text, tone: Tone::Plain, key: None }
    }

    /// `-` where there is nothing.
    pub(crate) fn maybe(text: Option<impl ToString>) -> Self {
        text.map_or_else(|| Self::new("-").tone(Tone::Faint), Self::new)
    }

    pub(crate) fn tone(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }

    pub(crate) fn key(mut self, key: f64) -> Self {
        self.key = Some(key);
        self
    }

    /// A count, where anything but 0 has `tone`.
    pub(crate) fn count(count: u64, tone: Tone) -> Self {
        Self::new(count).key(count as f64).tone(if count == 0 { Tone::Plain } else { tone })
    }
}

/// One thing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Its name: what a cursor stays on when rows move.
    pub(crate) id: String,
    pub(crate) cells: Vec<Cell>,
    /// What Enter opens.
    pub(crate) open: Option<View>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Grid {
    pub(crate) columns: &'static [Column],
    /// Those that the filter lets through, in order.
    pub(crate) rows: Vec<Row>,
    /// All, filtered ones included.
    pub(crate) total: usize,
    /// What each column needs.
    widths: Vec<u16>,
}

/// Between columns.
pub(crate) const GUTTER: u16 = 2;
/// Text that gives way keeps this much …
const NARROW: u16 = 10;
/// … and in a column that never goes this much: before that, other columns go.
const READABLE: u16 = 30;

impl Grid {
    pub(crate) fn new(
        columns: &'static [Column],
        mut rows: Vec<Row>,
        filter: &str,
        sort: Option<(usize, bool)>,
    ) -> Self {
        let total = rows.len();
        rows.retain(|row| is_match(filter, row));
        if let Some((column, reversed)) = sort.filter(|(column, _)| *column < columns.len()) {
            rows.sort_by(|left, right| {
                let order = order(&left.cells[column], &right.cells[column]);
                if reversed { order.reverse() } else { order }
            });
        }
        let widest = |at: usize| rows.iter().map(|row| row.cells[at].text.width()).max().unwrap_or(0);
        let width = |(at, column): (usize, &Column)| widest(at).max(column.title.width() + 1);
        let widths = columns.iter().enumerate().map(|at| u16::try_from(width(at)).unwrap_or(u16::MAX)).collect();
        Self { columns, rows, total, widths }
    }

    /// The columns that fit into `total`, each with its width. First the widest text gives way, then whole columns, the least
    /// important first.
    pub(crate) fn fit(&self, total: u16) -> Vec<(usize, u16)> {
        let mut shown: Vec<(usize, u16)> = self.widths.iter().copied().enumerate().collect();
        let taken = |shown: &[(usize, u16)], width: &dyn Fn(&(usize, u16)) -> u16| -> u32 {
            shown.iter().map(|one| u32::from(width(one)) + u32::from(GUTTER)).sum()
        };
        let least = |(at, width): &(usize, u16)| {
            let column = &self.columns[*at];
            match (column.right, column.rank) {
                (true, _) => *width,
                (false, 0) => (*width).min(READABLE),
                (false, _) => (*width).min(NARROW.max(column.title.width() as u16 + 1)),
            }
        };
        let available = u32::from(total) + u32::from(GUTTER);
        while taken(&shown, &least) > available {
            let last = shown.iter().enumerate().max_by_key(|(place, (at, _))| (self.columns[*at].rank, *place));
            match last {
                Some((place, (at, _))) if self.columns[*at].rank > 0 => shown.remove(place),
                _ => break,
            };
        }
        while taken(&shown, &|one| one.1) > available {
            let spare = shown.iter_mut().filter(|one| one.1 > least(one));
            let widest = spare.max_by_key(|one| (one.1, self.columns[one.0].rank));
            let Some(widest) = widest else { break };
            widest.1 -= 1;
        }
        // Nothing more can go: whatever is widest is cut.
        while taken(&shown, &|one| one.1) > available
            && let Some(widest) = shown.iter_mut().filter(|one| one.1 > NARROW).max_by_key(|one| one.1)
        {
            widest.1 -= 1;
        }
        shown
    }
}

/// Whether a row holds `filter`, whatever the case of letters; with `!` before it, whether it does not.
fn is_match(filter: &str, row: &Row) -> bool {
    let (inverse, wanted) = match filter.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, filter),
    };
    if wanted.is_empty() {
        return true;
    }
    let wanted = wanted.to_lowercase();
    row.cells.iter().any(|cell| cell.text.to_lowercase().contains(&wanted)) != inverse
}

/// Numbers by size, the largest first, because that is what one looks for; texts from A; nothing last.
fn order(left: &Cell, right: &Cell) -> Ordering {
    match (left.key, right.key) {
        (Some(left), Some(right)) => right.total_cmp(&left),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => left.text.cmp(&right.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[text("name", 0), number("rate", 1), text("why", 2)];

    fn grid(filter: &str, sort: Option<(usize, bool)>) -> Vec<String> {
        let row = |id: &str, rate: Option<f64>, why: &str| Row {
            id: id.into(),
            cells: vec![
                Cell::new(id),
                rate.map_or_else(Cell::default, |rate| Cell::new(rate).key(rate)),
                Cell::new(why),
            ],
            open: None,
        };
        let rows = vec![row("b", Some(2.0), "Slow"), row("a", None, ""), row("c", Some(10.0), "")];
        Grid::new(COLUMNS, rows, filter, sort).rows.into_iter().map(|row| row.id).collect()
    }

    #[test]
    fn rows_are_filtered_and_sorted() {
        assert_eq!(grid("", None), ["b", "a", "c"]);
        assert_eq!(grid("", Some((0, false))), ["a", "b", "c"]);
        assert_eq!(grid("", Some((1, false))), ["c", "b", "a"]);
        assert_eq!(grid("", Some((1, true))), ["a", "b", "c"]);
        assert_eq!(grid("slow", None), ["b"]);
        assert_eq!(grid("!slow", None), ["a", "c"]);
        assert_eq!(grid("!", None), ["b", "a", "c"], "nothing is excluded yet");
    }

    #[test]
    fn columns_give_way() {
        let row = Row {
            id: "x".into(),
            cells: vec![Cell::new("n".repeat(30)), Cell::new("1234"), Cell::new("w".repeat(60))],
            open: None,
        };
        let grid = Grid::new(COLUMNS, vec![row], "", None);
        assert_eq!(grid.fit(200), [(0, 30), (1, 5), (2, 60)]);
        assert_eq!(grid.fit(60), [(0, 30), (1, 5), (2, 21)]);
        assert_eq!(grid.fit(40), [(0, 30), (1, 5)]);
        assert_eq!(grid.fit(20), [(0, 20)], "the name stays");
    }
}
