//! The Grafana dashboards, as data: what each panel asks, and how it is shown.
//!
//! `deploy/kustomize/monitoring/dashboards` is written from here, a test keeps it so, and others
//! ask a real Prometheus every query that stands here. A panel asks for nothing that is not a
//! series of `docs/metrics.md` or a record of `deploy/prometheus/rules.yaml`.

mod pages;

use serde_json::{Value, json};

pub use self::pages::all;

/// The width of a row, in Grafana's units.
const ROW: u32 = 24;

/// One dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// The name of its file, without the ending, and of its address in Grafana.
    pub name: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// What can be chosen on it.
    pub variables: &'static [Variable],
    /// What it shows, in the order of reading.
    pub panels: Vec<Panel>,
}

/// Something that can be chosen on a dashboard.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// The label that it chooses by; queries name it with a `$`.
    pub label: &'static str,
    /// The series whose values of that label are offered.
    pub of: &'static str,
}

/// How a panel looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// One number.
    Number,
    /// Lines over time.
    Lines,
    /// Areas over time, one on the other: for parts of a whole.
    Stack,
    /// Rows, one for each series.
    Table,
}

/// What the numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// A part of one.
    Ratio,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// Watts.
    Watts,
    /// Degrees Celsius.
    Celsius,
    /// Bytes a second.
    BytesPerSecond,
}

/// One panel.
#[derive(Debug)]
pub struct Panel {
    /// What it answers, in a few words.
    pub title: &'static str,
    /// How to read it.
    pub help: &'static str,
    /// How it looks.
    pub look: Look,
    /// What its numbers are.
    pub unit: Unit,
    /// What it asks: each query with the words for its lines.
    pub queries: Vec<(String, &'static str)>,
    /// True if a sound node may have nothing to show: faults, refusals, waiting.
    pub may_be_empty: bool,
}

impl Panel {
    /// A panel of one query.
    fn new(title: &'static str, look: Look, unit: Unit, query: &str, legend: &'static str) -> Self {
        let queries = vec![(query.to_owned(), legend)];
        Self { title, help: "", look, unit, queries, may_be_empty: false }
    }

    /// This and another query.
    fn and(mut self, query: &str, legend: &'static str) -> Self {
        self.queries.push((query.to_owned(), legend));
        self
    }

    fn help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }

    fn or_nothing(mut self) -> Self {
        self.may_be_empty = true;
        self
    }

    fn json(&self, id: usize, (x, y): (u32, u32)) -> Value {
        let targets = self.queries.iter().zip('A'..).map(|((query, legend), letter)| {
            json!({
                "datasource": source(),
                "expr": query,
                "legendFormat": legend,
                "refId": letter.to_string(),
                "instant": matches!(self.look, Look::Number | Look::Table),
                "format": if self.look == Look::Table { "table" } else { "time_series" },
            })
        });
        let (width, height) = self.size();
        let mut panel = json!({
            "id": id,
            "title": self.title,
            "description": self.help,
            "type": self.look.kind(),
            "datasource": source(),
            "gridPos": { "x": x, "y": y, "w": width, "h": height },
            "fieldConfig": { "defaults": self.defaults(), "overrides": [] },
            "targets": targets.collect::<Vec<_>>(),
        });
        if self.look == Look::Table {
            // The time of each row is the same, and says nothing.
            panel["transformations"] = json!([
                { "id": "organize", "options": { "excludeByName": { "Time": true } } }
            ]);
        }
        panel
    }

    fn defaults(&self) -> Value {
        let mut defaults = json!({ "unit": self.unit.word() });
        if matches!(self.unit, Unit::Ratio | Unit::Count | Unit::Bytes) {
            defaults["min"] = json!(0);
        }
        if self.look == Look::Stack {
            defaults["custom"] =
                json!({ "fillOpacity": 60, "lineWidth": 0, "stacking": { "mode": "normal" } });
        }
        defaults
    }

    fn size(&self) -> (u32, u32) {
        match self.look {
            Look::Number => (4, 4),
            Look::Lines | Look::Stack => (12, 8),
            Look::Table => (ROW, 8),
        }
    }
}

impl Look {
    fn kind(self) -> &'static str {
        match self {
            Self::Number => "stat",
            Self::Lines | Self::Stack => "timeseries",
            Self::Table => "table",
        }
    }
}

impl Unit {
    /// What Grafana calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Count => "short",
            Self::Ratio => "percentunit",
            Self::Bytes => "bytes",
            Self::Seconds => "s",
            Self::Watts => "watt",
            Self::Celsius => "celsius",
            Self::BytesPerSecond => "Bps",
        }
    }
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${source}" })
}

impl Dashboard {
    /// The file for Grafana.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut variables = vec![json!({
            "name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus",
        })];
        variables.extend(self.variables.iter().map(|variable| {
            let Variable { label, of } = variable;
            json!({
                "name": label, "label": label, "type": "query", "datasource": source(),
                "query": { "query": format!("label_values({of}, {label})"), "refId": label },
                "refresh": 2, "sort": 1, "includeAll": true, "multi": true, "allValue": ".*",
                "current": { "text": "All", "value": "$__all" },
            })
        }));
        json!({
            "uid": format!("accelpool-{}", self.name),
            "title": format!("accelpool: {}", self.title),
            "tags": ["accelpool"],
            "schemaVersion": 39,
            "editable": false,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "links": [{
                "title": "accelpool", "type": "dashboards", "tags": ["accelpool"],
                "keepTime": true, "includeVars": true,
            }],
            "templating": { "list": variables },
            "panels": self.laid_out(),
        })
    }

    /// The panels from left to right, row below row.
    fn laid_out(&self) -> Vec<Value> {
        let (mut x, mut y, mut tallest) = (0, 0, 0);
        let mut panels = Vec::new();
        for (index, panel) in self.panels.iter().enumerate() {
            let (width, height) = panel.size();
            if x + width > ROW {
                (x, y, tallest) = (0, y + tallest, 0);
            }
            panels.push(panel.json(index + 1, (x, y)));
            x += width;
            tallest = tallest.max(height);
        }
        panels
    }
}

/// A query as Prometheus takes it, with everything chosen and rates over `span`.
#[must_use]
pub fn filled(query: &str, span: &str) -> String {
    let query = query.replace("$__rate_interval", span).replace("$__range", span);
    ["node", "device", "agent"]
        .iter()
        .fold(query, |query, label| query.replace(&format!("${label}"), ".*"))
}
