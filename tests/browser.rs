//! The report in a headless Chromium: real runs, their charts against their metrics, no word on the console, and pictures at two widths.
//!
//! `./x test-browser` finds or installs the browser; `MASKWRIGHT_CHROMIUM` names another one. The pictures are left in the build folder.

mod cli_tools;
mod host_fixture;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli_tools::{json, json_file, succeeds, village, village_text};
use host_fixture::Scratch;
use serde_json::Value;

/// Widths of a phone and of a desk, in CSS pixels.
const WIDTHS: [u32; 2] = [390, 1280];

fn chromium(args: &[String]) -> (String, String) {
    let name = std::env::var("MASKWRIGHT_CHROMIUM").unwrap_or_else(|_| "chromium".into());
    let profile = Scratch::new();
    let output = Command::new(&name)
        // The sandbox is not to be had as root nor in most containers; the pages are our own.
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"])
        .args(["--no-first-run", "--disable-background-networking", "--virtual-time-budget=10000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{name}: {e}; ./x test-browser installs Chromium"));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}: {err}");
    let console: Vec<&str> = err.lines().filter(|l| l.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "on the console: {console:?}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), err)
}

fn url(page: &Path) -> String {
    format!("file://{}#check", page.display())
}

/// Equal but for the last digits, which reading and writing JSON may change.
#[track_caller]
fn same(shown: &[f64], told: &[f64], what: &str) {
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * b.abs();
    let all = shown.len() == told.len() && shown.iter().zip(told).all(close);
    assert!(all, "{what}: shown {shown:?}, told {told:?}");
}

/// What the page says of itself at a width: its charts, its height, by how much it is too wide.
fn checked(page: &Path, width: u32) -> Value {
    let (dom, err) = chromium(&[format!("--window-size={width},900"), "--dump-dom".into(), url(page)]);
    for slip in [">false<", ">undefined<", ">null<", "NaN", "[object "] {
        let text = dom.split("<script").next().unwrap_or_default();
        assert!(!text.contains(slip), "{slip} on {}", page.display());
    }
    let found = dom.split("id=\"checked\">").nth(1).and_then(|rest| rest.split("</script>").next());
    let found = json(found.unwrap_or_else(|| panic!("the page did not check itself: {err}")));
    assert!(found["overflow"].as_i64().unwrap() <= 0, "{} is too wide for {width}: {found}", page.display());
    for chart in found["charts"].as_array().unwrap() {
        assert!(chart["drawn"].as_u64().unwrap() > 500, "an empty chart at {width}: {chart}");
    }
    found
}

/// A picture of the whole page, left in the build folder.
fn picture(page: &Path, width: u32, height: u64, name: &str) {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}-{width}.png"));
    let _ = fs::remove_file(&path);
    chromium(&[
        format!("--window-size={width},{height}"),
        format!("--screenshot={}", path.display()),
        url(page),
    ]);
    let bytes = fs::metadata(&path).map_or(0, |m| m.len());
    assert!(bytes > 10_000, "{}: {bytes} bytes", path.display());
    println!("picture: {}", path.display());
}

/// A page whose first chart is zoomed into with the mouse, with that chart's ends of the axis: once dragged, once the page has another
/// width, and once it is made anew, as the page of a run under way is when there is something new.
fn zoomed(page: &Path, copy: &Path) -> Vec<Vec<f64>> {
    let html = fs::read_to_string(page).unwrap();
    let html = html.replacen("\"generator\":", "\"live\":1,\"generator\":", 1);
    let script = r#"<script>
        const parts = [], seen = () => parts.push(maskwrightCharts()[0].x);
        const held = JSON.parse(document.getElementById("data").textContent);
        window.fetch = async () => ({ status: 200, json: async () => ({ ...held, live: 2 }) });
        const over = document.querySelector(".u-over"), box = over.getBoundingClientRect();
        const mouse = (type, at, on) => on.dispatchEvent(new MouseEvent(type, {
            bubbles: true, button: 0, buttons: 1, movementX: 9, clientX: box.left + at * box.width, clientY: box.top + 20 }));
        setTimeout(() => {
            seen();
            mouse("mousemove", 0.25, over); mouse("mousedown", 0.25, over);
            mouse("mousemove", 0.75, over); mouse("mouseup", 0.75, document);
        }, 200);
        setTimeout(seen, 500);
        setTimeout(() => { document.body.style.width = "80%"; dispatchEvent(new Event("resize")); }, 600);
        setTimeout(seen, 900);
        setTimeout(() => {
            seen();
            const node = document.createElement("p");
            node.id = "zoomed"; node.textContent = JSON.stringify(parts);
            document.body.append(node);
        }, 4000);
        </script></body>"#;
    fs::write(copy, html.replacen("</body>", script, 1)).unwrap();
    let (dom, err) = chromium(&["--dump-dom".into(), format!("file://{}", copy.display())]);
    let found = dom.split("id=\"zoomed\">").nth(1).and_then(|rest| rest.split('<').next());
    serde_json::from_str(found.unwrap_or_else(|| panic!("no word of the zoom: {err}"))).unwrap()
}

fn prune(dir: &Scratch, name: &str, more: &[&str]) -> PathBuf {
    let out = dir.join(name);
    let (model, calib, heldout) = (village(), village_text("calib"), village_text("heldout"));
    let common = args![
        "prune",
        model,
        "--calib",
        calib,
        "--eval",
        heldout,
        "--eval-window",
        "64",
        "--eval-windows",
        "24",
        "--windows",
        "16",
        "--window",
        "64",
        "--no-model",
        "--quiet",
        "--out",
        out
    ];
    let more: Vec<std::ffi::OsString> = more.iter().map(Into::into).collect();
    succeeds(&[common, &more].concat());
    out
}

fn lines(run: &Path) -> Vec<Value> {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().map(json).collect()
}

fn chart<'a>(checked: &'a Value, title: &str, number: usize) -> &'a Value {
    let charts = checked["charts"].as_array().unwrap();
    let found = charts.iter().filter(|c| c["title"] == title).nth(number);
    found.unwrap_or_else(|| panic!("no chart {title} {number} in {checked}"))
}

/// The numbers of a series of a chart, gaps left out.
fn numbers(chart: &Value, series: usize) -> Vec<f64> {
    chart["data"][series + 1].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

fn of(lines: &[Value], stage: Option<u64>, key: &str) -> Vec<f64> {
    let steps = lines.iter().filter(|l| l["step"].is_u64() && l["stage"].as_u64() == stage);
    steps.filter_map(|l| l[key].as_f64()).collect()
}

#[test]
#[ignore = "needs Chromium: ./x test-browser"]
fn the_page_shows_what_the_runs_say() {
    let dir = Scratch::new();
    let learned = prune(
        &dir,
        "learned",
        &["--objective", "block,model", "--steps", "12,10", "--batch", "4", "--start", "wanda"],
    );
    let policy = prune(
        &dir,
        "policy",
        &["--method", "maskpro", "--steps", "30", "--batch", "4", "--start", "magnitude"],
    );
    let descent = prune(&dir, "descent", &["--method", "descent"]);

    // As an interrupted run is.
    let unfinished = dir.join("unfinished");
    fs::create_dir(&unfinished).unwrap();
    fs::copy(learned.join("metrics.jsonl"), unfinished.join("metrics.jsonl")).unwrap();
    let unfinished_page = dir.join("unfinished.html");
    succeeds(args!["report", unfinished, "--out", unfinished_page]);

    let parts = zoomed(&learned.join("report.html"), &dir.join("zoomed.html"));
    let [whole, zoom @ ..] = parts.as_slice() else { panic!("{parts:?}") };
    assert!(zoom.len() == 3 && zoom.iter().all(|x| x == &zoom[0]), "the zoom is lost: {parts:?}");
    assert!(zoom[0][0] > whole[0] && zoom[0][1] < whole[1], "not zoomed: {parts:?}");

    for width in WIDTHS {
        assert_eq!(checked(&unfinished_page, width)["charts"].as_array().unwrap().len(), 4);
        let page = learned.join("report.html");
        let found = checked(&page, width);
        let told = lines(&learned);
        for stage in [1, 2] {
            let number = stage as usize - 1;
            for (title, key) in [("Loss", "loss"), ("Temperature", "temperature")] {
                let values = of(&told, Some(stage), key);
                assert_eq!(values.len(), [60, 10][number], "steps of stage {stage}");
                same(
                    &numbers(chart(&found, title, number), 0),
                    &values,
                    &format!("{title} of stage {stage}"),
                );
            }
        }
        let windows = json_file(&learned.join("windows.json"));
        let by_window = chart(&found, "Mean loss of every evaluation window", 0);
        for (i, model) in ["dense", "result"].iter().enumerate() {
            let told: Vec<f64> =
                windows["loss"][model].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
            same(&numbers(by_window, i), &told, model);
        }
        picture(&page, width, found["height"].as_u64().unwrap(), "learned");

        let page = policy.join("report.html");
        let found = checked(&page, width);
        let told = lines(&policy);
        same(&numbers(chart(&found, "Loss", 0), 0), &of(&told, None, "loss"), "loss");
        let both = chart(&found, "Residual and tracker", 0);
        for (i, key) in ["residual", "tracker"].iter().enumerate() {
            same(&numbers(both, i), &of(&told, None, key), key);
        }
        picture(&page, width, found["height"].as_u64().unwrap(), "policy");

        let page = dir.join("several.html");
        succeeds(args!["report", learned, policy, descent, "--out", page]);
        let found = checked(&page, width);
        let scatter: Vec<&Value> = found["charts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|c| c["title"] == "Lower left is better")
            .collect();
        assert_eq!(scatter.len(), 2, "time and memory");
        for chart in scatter {
            assert_eq!(numbers(chart, 0).len() + numbers(chart, 1).len(), 3, "every run is a point");
        }
        picture(&page, width, found["height"].as_u64().unwrap(), "several");
    }
}
