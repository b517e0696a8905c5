//! A driver that has every function of the table, as the newest one does: most do nothing but
//! count their calls.

use std::{fmt::Write as _, fs, process::Command};

use super::Node;

/// A row of the table of functions.
pub(crate) struct Row {
    pub(crate) symbol: &'static str,
    pub(crate) name: &'static str,
    pub(crate) since: u32,
    pub(crate) class: &'static str,
    pub(crate) action: &'static str,
    pub(crate) takes_stream: bool,
}

pub(crate) fn table() -> Vec<Row> {
    let table = include_str!("../../surface/functions.tsv");
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [symbol, name, since, class, action, parameters] = fields[..] else {
            panic!("six columns: `{line}`");
        };
        let takes_stream = parameters.split(',').any(|it| it == "stream");
        Row { symbol, name, since: since.parse().unwrap(), class, action, takes_stream }
    };
    lines.map(row).collect()
}

impl Row {
    /// Whether stream 0 is the calling thread's own.
    pub(crate) fn is_per_thread(&self) -> bool {
        self.symbol.ends_with("_ptsz") || self.symbol.ends_with("_ptds")
    }
}

/// Puts it in the place of the node's driver.
pub(crate) fn install(node: &Node) {
    let mut source = String::from(
        "static int act(const char *, unsigned long, unsigned long, unsigned long);\n",
    );
    let rows = table();
    writeln!(source, "static int calls[{}];", rows.len()).unwrap();
    let mut entries = String::new();
    for (number, row) in rows.iter().enumerate() {
        let Row { symbol, name, since, .. } = row;
        if symbol.starts_with("cuGetProcAddress") {
            writeln!(source, "int {symbol}();").unwrap();
        } else {
            writeln!(
                source,
                "int {symbol}(unsigned long a, unsigned long b, unsigned long c) {{
    __atomic_fetch_add(&calls[{number}], 1, __ATOMIC_SEQ_CST);
    return act(\"{symbol}\", a, b, c);
}}"
            )
            .unwrap();
        }
        let own = u8::from(row.is_per_thread());
        writeln!(entries, "    {{\"{symbol}\", \"{name}\", {since}, {own}, (void *){symbol}}},")
            .unwrap();
    }
    source += "static const struct { const char *symbol, *name; int since, is_own; void *at; } \
               all[] = {\n";
    source += &entries;
    source += "};\n";
    source += include_str!("../c/whole.c");
    let (driver, path) = (node.dir.path().join("libcuda.so.1"), node.dir.path().join("whole.c"));
    fs::remove_file(&driver).unwrap();
    fs::write(&path, source).unwrap();
    let mut compiler = Command::new("cc");
    // As the driver's own, its functions call each other and not who comes before them.
    compiler.args(["-w", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1,-Bsymbolic", "-o"]);
    assert!(compiler.args([&driver, &path]).status().unwrap().success());
}
