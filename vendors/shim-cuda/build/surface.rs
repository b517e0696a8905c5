//! From the table of functions to code: real functions by name, wrappers that only gate or
//! deny, and the table that the look-up hooks search.

use std::fmt::Write;

/// One exported symbol of the driver's library.
pub(crate) struct Function {
    symbol: String,
    name: String,
    since: u32,
    class: String,
    action: Action,
    parameters: Vec<String>,
}

/// What the shim does with a function.
#[derive(PartialEq)]
enum Action {
    /// A wrapper of `src/wrap`.
    Wrap,
    /// A wrapper that is made here: the gate, then the driver.
    Gate,
    /// A wrapper that is made here: refused.
    Deny,
    /// Nothing: callers get the driver's own.
    Pass,
}

/// Reads the table; panics on what it does not understand, which stops the build.
pub(crate) fn read(table: &str) -> Vec<Function> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let mut functions: Vec<Function> = lines.map(read_line).collect();
    functions.sort_by(|one, other| (&one.name, &one.symbol).cmp(&(&other.name, &other.symbol)));
    functions
}

fn read_line(line: &str) -> Function {
    let fields: Vec<&str> = line.split('\t').collect();
    let [symbol, name, since, class, action, parameters] = fields[..] else {
        panic!("six columns, not `{line}`");
    };
    assert!(symbol.starts_with(name), "`{symbol}` does not begin with `{name}`");
    let action = match action {
        "wrap" => Action::Wrap,
        "gate" => Action::Gate,
        "deny" => Action::Deny,
        "pass" => Action::Pass,
        _ => panic!("no action: `{line}`"),
    };
    let parameters = match parameters {
        "-" => Vec::new(),
        _ => parameters.split(',').map(str::to_owned).collect(),
    };
    let since = since.parse().unwrap_or_else(|_| panic!("no version: `{line}`"));
    let (symbol, name, class) = (symbol.to_owned(), name.to_owned(), class.to_owned());
    Function { symbol, name, since, class, action, parameters }
}

/// The code.
pub(crate) fn generate(functions: &[Function]) -> String {
    let mut code = String::new();
    for (index, function) in functions.iter().enumerate() {
        generate_real(&mut code, index, function);
    }
    code.push_str("/// Where each function stands in the table.\npub(crate) mod rows {\n");
    for (index, function) in functions.iter().enumerate() {
        writeln!(code, "pub(crate) const {}: usize = {index};", function.symbol)
            .expect("text can be written");
    }
    code.push_str("}\nmod gates {\nuse super::{Cost, Stream, c_void, null_mut, submit};\ncrate::pass::submits! {\n");
    for function in functions.iter().filter(|it| it.action == Action::Gate) {
        generate_gate(&mut code, function);
    }
    code.push_str("}\n}\n");
    for function in functions.iter().filter(|it| it.action == Action::Deny) {
        generate_deny(&mut code, function);
    }
    code.push_str("#[cfg(accelpool_drop_in)]\nmod jumps {\n");
    for (index, function) in functions.iter().enumerate() {
        if function.action == Action::Pass {
            writeln!(code, "crate::entry::jump!({} {index});", function.symbol)
                .expect("text can be written");
        }
    }
    code.push_str("}\n");
    generate_table(&mut code, functions);
    code
}

fn rust_type(parameter: &str) -> &str {
    match parameter {
        "p" | "stream" => "*mut c_void",
        "bytes64" => "[u64; 8]",
        plain => plain,
    }
}

/// `a0: *mut c_void, a1: u32` and so on.
fn declared(function: &Function) -> String {
    let parameters = function.parameters.iter().enumerate();
    let declared = parameters.map(|(index, it)| format!("a{index}: {}", rust_type(it)));
    declared.collect::<Vec<_>>().join(", ")
}

fn arguments(function: &Function) -> String {
    let names = (0..function.parameters.len()).map(|index| format!("a{index}"));
    names.collect::<Vec<_>>().join(", ")
}

/// A structure by value is nothing that these declarations could say.
fn is_plain(function: &Function) -> bool {
    !function.parameters.iter().any(|it| it == "bytes64")
}

fn generate_real(code: &mut String, index: usize, function: &Function) {
    if !is_plain(function) {
        return;
    }
    let Function { symbol, parameters, .. } = function;
    let types = parameters.iter().map(|it| rust_type(it)).collect::<Vec<_>>().join(", ");
    let (declared, arguments) = (declared(function), arguments(function));
    write!(
        code,
        "#[inline]
pub(crate) unsafe fn {symbol}({declared}) -> c_int {{
    let Some(address) = real({index}) else {{ return NOT_FOUND }};
    // SAFETY: the driver's `{symbol}` has these parameters; the caller has its contract.
    let function = unsafe {{
        transmute::<NonNull<c_void>, unsafe extern \"C\" fn({types}) -> c_int>(address)
    }};
    // SAFETY: as above.
    unsafe {{ function({arguments}) }}
}}
"
    )
    .expect("text can be written");
}

fn generate_gate(code: &mut String, function: &Function) {
    let Function { symbol, parameters, .. } = function;
    let per_thread = is_per_thread(function);
    let position = parameters.iter().position(|it| it == "stream");
    let stream = position.map_or("null_mut()".to_owned(), |index| format!("a{index}"));
    let (declared, arguments) = (declared(function), arguments(function));
    write!(
        code,
        "fn {symbol}({declared}) to {{
    Some(Stream::new({stream}, {per_thread}))
}} else {{
    submit(Stream::new({stream}, {per_thread}), Cost::Unknown, move || super::{symbol}({arguments}))
}}
"
    )
    .expect("text can be written");
}

fn generate_deny(code: &mut String, function: &Function) {
    let Function { symbol, .. } = function;
    let types = function.parameters.iter().map(|it| format!("_: {}", rust_type(it)));
    let unnamed = types.collect::<Vec<_>>().join(", ");
    write!(
        code,
        "#[cfg_attr(accelpool_library, unsafe(export_name = \"{symbol}\"))]
pub(crate) unsafe extern \"C\" fn wrap_{symbol}({unnamed}) -> c_int {{
    NOT_PERMITTED
}}
"
    )
    .expect("text can be written");
}

fn is_per_thread(function: &Function) -> bool {
    function.symbol.ends_with("_ptsz") || function.symbol.ends_with("_ptds")
}

/// Where in `src/wrap` the wrappers of a class are.
fn module(class: &str) -> &'static str {
    match class {
        "allocate" | "free" | "map" | "import" | "query" | "host" => "memory",
        "launch" | "capture" | "sync" => "work",
        "context" | "entry" => "context",
        _ => panic!("no wrapper is written for the class `{class}`"),
    }
}

fn generate_table(code: &mut String, functions: &[Function]) {
    let count = functions.len();
    writeln!(code, "pub(crate) const COUNT: usize = {count};").expect("text can be written");
    writeln!(code, "pub(crate) static FUNCTIONS: [Function; COUNT] = [").expect("as above");
    for function in functions {
        let Function { symbol, name, since, class, action, .. } = function;
        let wrapper = match action {
            Action::Wrap => {
                let module = module(class);
                format!("Some(Wrapper(crate::wrap::{module}::{symbol} as *const c_void))")
            }
            Action::Gate => format!("Some(Wrapper(gates::{symbol} as *const c_void))"),
            Action::Deny => format!("Some(Wrapper(wrap_{symbol} as *const c_void))"),
            Action::Pass => "None".to_owned(),
        };
        writeln!(
            code,
            "    Function {{ symbol: \"{symbol}\", name: \"{name}\", since: {since}, \
             per_thread: {}, class: \"{class}\", wrapper: {wrapper} }},",
            is_per_thread(function)
        )
        .expect("text can be written");
    }
    writeln!(code, "];").expect("text can be written");
}
