//! What sharing costs one tenant: right results, the price of a launch, throughput.

use super::{
    book::Sheet,
    scene::{Node, Scene, Worker},
};

/// Numbers that the device computes and the processor checks.
const NUMBERS: u64 = 1 << 20;

/// A: the same results, by kernels, by `Ex` and by graphs.
pub(crate) fn sanity(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "a-sanity",
        "A. Right results",
        "Squares on the device, compared with the processor's; the shim's pointers.",
        &["system", "of 1048576 squares", "Ex, graphs", "cuGetProcAddress = dlsym"],
    );
    let node = Node::start(scene, "guarantee")?;
    let claim = node.claim("a", 500, "normal")?;
    for (system, mut tenant) in [("native", scene.native()?), ("accelpool", claim.tenant()?)] {
        let wrong = tenant.try_ask(&format!("compute {NUMBERS}"))?;
        // A stand-in computes nothing.
        let is_right = wrong == "0 wrong" || scene.is_played();
        sheet.must(is_right, || format!("{system}: {wrong}"));
        let mut others = "done".to_owned();
        for line in ["ex 100", "graph 10 20 3", "sync"] {
            if let Err(error) = tenant.try_ask(line) {
                others = format!("{line}: {error:#}");
                sheet.must(false, || format!("{system}: {others}"));
            }
        }
        let pointers = tenant.try_ask("pointers")?;
        sheet.row([system.to_owned(), wrong, others, pointers]);
    }
    Ok(sheet)
}

/// Median, and half of what lies between the highest and the lowest.
fn middle(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let (first, last) = (all.first().copied().unwrap_or(0.0), all.last().copied().unwrap_or(0.0));
    (all.get(all.len() / 2).copied().unwrap_or(0.0), (last - first) / 2.0)
}

/// Asks both in the order A-B-B-A, so often.
fn in_turn<T>(
    rounds: usize,
    pair: &mut [Worker; 2],
    ask: impl Fn(&mut Worker) -> anyhow::Result<T>,
) -> anyhow::Result<[Vec<T>; 2]> {
    let mut answers = [Vec::new(), Vec::new()];
    ask(&mut pair[0])?;
    ask(&mut pair[1])?; // what is done once is done
    for _ in 0..rounds {
        for who in [0, 1, 1, 0] {
            answers[who].push(ask(&mut pair[who])?);
        }
    }
    Ok(answers)
}

/// B: what the calling thread pays for a launch.
pub(crate) fn launch(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "b-launch",
        "B. What a launch costs",
        "Empty kernels of one thread, waited for after each 512; nanoseconds of the thread's own \
         time for each call, median and half the range over rounds A-B-B-A. `in turn`: beside \
         another claim that wants all. Aims: 15 ns more alone, 100 ns more in turn.",
        &[
            "call",
            "native ns",
            "±",
            "alone ns",
            "±",
            "in turn ns",
            "±",
            "more alone",
            "more in turn",
        ],
    );
    let node = Node::start(scene, "guarantee")?;
    let (claim, other) = (node.claim("a", 500, "normal")?, node.claim("b", 400, "normal")?);
    let mut pair = [scene.native()?, claim.tenant()?];
    for (name, kind, nodes) in [
        ("cuLaunchKernel", "launch", 1),
        ("cuLaunchKernelEx", "ex", 1),
        ("cuGraphLaunch of 1", "graph", 1),
        ("cuGraphLaunch of 100", "graph", 100),
    ] {
        let count = (scene.measures.launches / nodes / 4).max(16);
        let own_ns = |tenant: &mut Worker| {
            let answer = tenant.try_ask(&format!("cost {kind} {nodes} {count}"))?;
            Ok(answer.split(' ').nth(1).unwrap_or_default().parse::<f64>()?)
        };
        let [native, alone] = in_turn(scene.measures.rounds, &mut pair, own_ns)?;
        let mut beside = other.tenant()?;
        beside.try_send("burn 100 600000")?;
        let rounds = 0..scene.measures.rounds * 2;
        let contended = rounds.map(|_| own_ns(&mut pair[1])).collect::<anyhow::Result<Vec<_>>>()?;
        drop(beside);
        let [native, alone, contended] = [native, alone, contended].map(middle);
        let ns = |value: f64| format!("{value:.0}");
        sheet.row([
            name.to_owned(),
            ns(native.0),
            ns(native.1),
            ns(alone.0),
            ns(alone.1),
            ns(contended.0),
            ns(contended.1),
            ns(alone.0 - native.0),
            ns(contended.0 - native.0),
        ]);
    }
    Ok(sheet)
}

/// C: what one tenant gets done, alone on the device.
pub(crate) fn throughput(scene: &Scene) -> anyhow::Result<Sheet> {
    let mut sheet = Sheet::new(
        "c-throughput",
        "C. Throughput of one tenant",
        "Kernels for each second, alone on the device, median and half the range over rounds \
         A-B-B-A. Aim: 0.5 % lost at most. Programs of PyTorch are not in the folder.",
        &["work", "native", "±", "accelpool", "±", "lost %"],
    );
    let node = Node::start(scene, "guarantee")?;
    let claim = node.claim("a", 500, "normal")?;
    let mut pair = [scene.native()?, claim.tenant()?];
    let ms = scene.measures.burn_ms;
    for (name, line) in [
        ("kernels of 2 ms", format!("burn 2000 {ms}")),
        ("kernels of 200 us", format!("burn 200 {ms}")),
        ("kernels of 20 us", format!("burn 20 {ms}")),
        ("kernels of 20 us, each waited for", format!("beat 20 {ms}")),
    ] {
        let rate = |tenant: &mut Worker| {
            let answer = tenant.try_ask(&line)?;
            let count = answer.split(' ').next().unwrap_or_default().parse::<f64>()?;
            Ok(count * 1000.0 / f64::from(u32::try_from(ms)?))
        };
        let [native, ours] = in_turn(scene.measures.rounds, &mut pair, rate)?.map(middle);
        let lost = (1.0 - ours.0 / native.0.max(f64::MIN_POSITIVE)) * 100.0;
        sheet.row([
            name.to_owned(),
            format!("{:.0}", native.0),
            format!("{:.0}", native.1),
            format!("{:.0}", ours.0),
            format!("{:.0}", ours.1),
            format!("{lost:.2}"),
        ]);
    }
    Ok(sheet)
}
