//! The live form of `top`: asks every second, draws what changed, gives the terminal back.

use std::{io, thread, time::Duration};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Cell, Paragraph, Row as Cells, Table},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time,
};

use super::{
    empty,
    rows::{self, Row},
};
use crate::{
    client::Client,
    document::{DeviceTurns, GetTurnsResponse},
    failure::{Failure, chain},
    output::clean,
};

/// As often as people look; the daemon's figures are of ten seconds.
const INTERVAL: Duration = Duration::from_secs(1);
/// Keys that are not yet read; nobody types more ahead.
const KEYS_MAX: usize = 16;

/// What the screen shows.
pub(super) struct View {
    turns: Option<GetTurnsResponse>,
    /// Why the figures are not of this moment.
    trouble: Option<String>,
    /// Lines that have been scrolled past.
    skipped: usize,
    has_color: bool,
}

/// What a key asks for.
enum Wish {
    Quit,
    Up,
    Down,
    Redraw,
    /// A defect, for the tests.
    #[cfg(debug_assertions)]
    Fail,
}

pub(super) async fn run(client: &Client, has_color: bool) -> Result<(), Failure> {
    let mut view = View::new(has_color);
    // A daemon that cannot be asked at all is reported as by every other command.
    view.turns = Some(client.turns().await?);
    // From here on the terminal is given back also by a panic.
    let mut terminal = ratatui::try_init().map_err(Failure::Terminal)?;
    let ended = watch(client, &mut terminal, &mut view).await;
    ratatui::restore();
    ended.map_err(Failure::Terminal)
}

async fn watch(client: &Client, terminal: &mut DefaultTerminal, view: &mut View) -> io::Result<()> {
    // Whoever ends it: the terminal is given back first.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut wishes = keys();
    let mut tick = time::interval(INTERVAL);
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        tokio::select! {
            _ = tick.tick() => match client.turns().await {
                Ok(turns) => (view.turns, view.trouble) = (Some(turns), None),
                Err(failure) => view.trouble = Some(chain(&failure)),
            },
            wish = wishes.recv() => match wish {
                None | Some(Wish::Quit) => return Ok(()),
                Some(Wish::Up) => view.skipped = view.skipped.saturating_sub(1),
                Some(Wish::Down) => view.skipped += 1,
                Some(Wish::Redraw) => {}
                #[cfg(debug_assertions)]
                Some(Wish::Fail) => panic!("asked to fail"),
            },
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
        }
    }
}

/// Reads keys on a thread of its own, which ends with the program.
fn keys() -> mpsc::Receiver<Wish> {
    let (wishes, receiver) = mpsc::channel(KEYS_MAX);
    thread::spawn(move || {
        // A terminal that cannot be read any more is gone, and so is who watched.
        while let Ok(event) = event::read() {
            if let Some(wish) = wish(&event)
                && wishes.blocking_send(wish).is_err()
            {
                return;
            }
        }
    });
    receiver
}

#[expect(clippy::wildcard_enum_match_arm, reason = "no other key means anything")]
fn wish(event: &Event) -> Option<Wish> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                Some(Wish::Quit)
            }
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
            #[cfg(debug_assertions)]
            KeyCode::F(12) => Some(Wish::Fail),
            KeyCode::Up | KeyCode::Char('k') => Some(Wish::Up),
            KeyCode::Down | KeyCode::Char('j') => Some(Wish::Down),
            _ => None,
        },
        Event::Resize(..) => Some(Wish::Redraw),
        _ => None,
    }
}

/// Columns and the widths that they have; the claim's takes the rest.
const COLUMNS: [(&str, u16); 8] = [
    ("CLASS", 8),
    ("STATE", 8),
    ("SHARE", 7),
    ("OF", 7),
    ("MEMORY", 7),
    ("OF", 7),
    ("WAITED", 7),
    ("TURNS", 6),
];

impl View {
    pub(super) fn new(has_color: bool) -> Self {
        Self { turns: None, trouble: None, skipped: 0, has_color }
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let layout = [Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)];
        let [head, body, foot] = Layout::vertical(layout).areas(frame.area());
        frame.render_widget(
            Line::from("accelpool top").style(self.style(None, Modifier::BOLD)),
            head,
        );
        let (words, style) = if let Some(trouble) = &self.trouble {
            let style = self.style(Some(Color::Red), Modifier::empty());
            (format!("old figures: {}", clean(trouble)), style)
        } else {
            let style = self.style(None, Modifier::DIM);
            ("q quits, up and down scroll".to_owned(), style)
        };
        frame.render_widget(Line::from(words).style(style), foot);
        match &self.turns {
            Some(turns) if !turns.devices.is_empty() => {
                let rows = self.rows(&turns.devices);
                // The last row stays in sight.
                self.skipped = self.skipped.min(rows.len().saturating_sub(1));
                let shown = rows.into_iter().skip(self.skipped);
                frame.render_widget(table(shown), body);
            }
            Some(turns) => frame.render_widget(Paragraph::new(empty(turns)), body),
            None => {}
        }
    }

    fn rows(&self, devices: &[DeviceTurns]) -> Vec<Cells<'static>> {
        let mut rows = Vec::new();
        for device in devices {
            let words = clean(&rows::headline(device)).into_owned();
            let style = self.style(Some(Color::Cyan), Modifier::empty());
            // A row of the table has columns; a headline goes over all of them.
            rows.push(Cells::new([Cell::from(Line::from(words)).column_span(9)]).style(style));
            for claim in &device.claims {
                let row = Row::of(claim);
                let over = claim.memory_denied > 0;
                let state = self.style(row.is_bad.then_some(Color::Red), Modifier::empty());
                let memory = self.style(over.then_some(Color::Yellow), Modifier::empty());
                let right = |text: String| Cell::from(Line::from(text).right_aligned());
                rows.push(Cells::new([
                    Cell::from(format!("  {}", clean(&claim.claim))),
                    Cell::from(claim.class.clone()),
                    Cell::from(claim.state.clone()).style(state),
                    right(row.share),
                    right(row.granted),
                    right(row.memory).style(memory),
                    right(row.quota),
                    right(row.waited),
                    right(claim.turns.to_string()),
                ]));
            }
        }
        rows
    }

    /// A style, without colour where none is wanted.
    fn style(&self, color: Option<Color>, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        match color.filter(|_| self.has_color) {
            Some(color) => style.fg(color),
            None => style,
        }
    }
}

fn table(rows: impl Iterator<Item = Cells<'static>>) -> Table<'static> {
    let right = |title: &'static str| Cell::from(Line::from(title).right_aligned());
    let titles = COLUMNS.iter().enumerate().map(|(index, (title, _))| match index {
        0 | 1 => Cell::from(*title),
        _ => right(title),
    });
    let titles = std::iter::once(Cell::from("CLAIM")).chain(titles);
    let widths = COLUMNS.iter().map(|(_, width)| Constraint::Length(*width));
    let widths = std::iter::once(Constraint::Min(8)).chain(widths);
    let header = Cells::new(titles).style(Style::new().add_modifier(Modifier::UNDERLINED));
    Table::new(rows, widths).header(header).column_spacing(1)
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::document::ClaimTurns;

    fn claim(name: &str, class: &str, state: &str, shares: [u32; 2]) -> ClaimTurns {
        ClaimTurns {
            claim: name.to_owned(),
            class: class.to_owned(),
            state: state.to_owned(),
            granted_permille: shares[1],
            measured_permille: Some(shares[0]),
            throttled_ns: 12_345_678_901,
            turns: 4711,
            memory_quota_bytes: 10 << 30,
            memory_used_bytes: 3 << 30,
            ..ClaimTurns::default()
        }
    }

    fn node() -> GetTurnsResponse {
        let shared = DeviceTurns {
            device: "gpu-0000-1b-00-0".to_owned(),
            mode: "exclusive".to_owned(),
            hand_over_ns: 54_321,
            claims: vec![
                claim("a-claim-with-a-name-that-is-long", "normal", "running", [749, 750]),
                claim("b", "realtime", "waiting", [250, 250]),
                claim("evil\u{1b}[2J", "idle", "stuck", [1, 1000]),
            ],
            ..DeviceTurns::default()
        };
        GetTurnsResponse {
            devices: vec![shared],
            folder: "/run/accelpool/turns".to_owned(),
            ..GetTurnsResponse::default()
        }
    }

    /// What is on a screen of this size, without what is right of the text.
    fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it is memory");
        terminal.draw(|frame| view.draw(frame)).expect("it is memory");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn it_fits_a_terminal_of_80_columns() {
        let mut view = View::new(false);
        view.turns = Some(node());
        let seen = screen(&mut view, 80, 9);
        let expected = [
            "accelpool top",
            "CLAIM           CLASS    STATE      SHARE      OF  MEMORY      OF  WAITED  TURNS",
            "gpu-0000-1b-00-0  exclusive, hand-over 54.3 us, 3 claims",
            "  a-claim-with- normal   running   74.9 %  75.0 %     3Gi    10Gi  12.3 s   4711",
            "  b             realtime waiting   25.0 %  25.0 %     3Gi    10Gi  12.3 s   4711",
            "  evil\\u{1b}[2J idle     stuck      0.1 % 100.0 %     3Gi    10Gi  12.3 s   4711",
            "",
            "",
            "q quits, up and down scroll",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn it_scrolls_and_keeps_the_last_row() {
        let mut view = View::new(false);
        view.turns = Some(node());
        view.skipped = 100;
        let seen = screen(&mut view, 80, 24);
        assert!(seen[2].starts_with("  evil"), "{seen:?}");
        assert_eq!(view.skipped, 3);
    }

    #[test]
    fn it_says_why_figures_are_old_and_that_there_are_none() {
        let mut view = View::new(true);
        view.turns = Some(GetTurnsResponse::default());
        view.trouble = Some("accelpoold did not answer within 10 s".to_owned());
        let seen = screen(&mut view, 80, 24);
        assert!(seen[1].starts_with("no device is shared by turns: "), "{seen:?}");
        assert_eq!(seen[23], "old figures: accelpoold did not answer within 10 s");
        // As small as a terminal can be.
        screen(&mut view, 1, 1);
    }
}
