//! Loss curves as SVG.

use std::fmt::Write;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 450.0;
/// Room for the axes' labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [60.0, 20.0, 30.0, 45.0];
/// How many labels an axis has at most.
const TICKS: f64 = 6.0;
/// Points that the smoothed line averages over, as a share of all.
const SMOOTH: usize = 20;

/// The curves of training and evaluation, (step, loss in nat) each; a line smooths the former.
#[must_use]
pub fn losses(train: &[(usize, f64)], eval: &[(usize, f64)]) -> String {
    let all = || train.iter().chain(eval).filter(|(_, loss)| loss.is_finite());
    let fold =
        |start: f64, f: &dyn Fn(f64, f64) -> f64, of: &dyn Fn(&(usize, f64)) -> f64| all().map(of).fold(start, f);
    let (x0, x1) = (
        fold(f64::INFINITY, &f64::min, &|(step, _)| *step as f64).min(1e18),
        fold(f64::NEG_INFINITY, &f64::max, &|(step, _)| *step as f64).max(1.0),
    );
    let (low, high) =
        (fold(f64::INFINITY, &f64::min, &|(_, loss)| *loss), fold(f64::NEG_INFINITY, &f64::max, &|(_, loss)| *loss));
    let (low, high) = if low.is_finite() { (low, high) } else { (0.0, 1.0) };
    let (x0, x1) = if x1 > x0 { (x0, x1) } else { (x1 - 1.0, x1) };
    let room = ((high - low) * 0.05).max(1e-3);
    let (y0, y1) = (low - room, high + room);
    let [left, right, top, bottom] = MARGIN;
    let x = |step: f64| left + (step - x0) / (x1 - x0) * (WIDTH - left - right);
    let y = |loss: f64| HEIGHT - bottom - (loss - y0) / (y1 - y0) * (HEIGHT - top - bottom);

    let mut svg = String::new();
    let mut add = |line: std::fmt::Arguments| {
        let _ = svg.write_fmt(format_args!("{line}\n"));
    };
    add(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    add(format_args!(r#"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"#));
    for tick in ticks(y0, y1) {
        let (at, end) = (y(tick), WIDTH - right);
        add(format_args!(r##"<line x1="{left}" y1="{at:.1}" x2="{end}" y2="{at:.1}" stroke="#ddd"/>"##));
        let label = (tick * 1e6).round() / 1e6;
        add(format_args!(r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#, left - 6.0, at + 4.0));
    }
    for tick in ticks(x0, x1).into_iter().filter(|tick| tick.fract() == 0.0) {
        let at = HEIGHT - bottom + 18.0;
        add(format_args!(r#"<text x="{:.1}" y="{at:.1}" text-anchor="middle">{tick}</text>"#, x(tick)));
    }
    let (middle, base) = (WIDTH / 2.0, HEIGHT - 8.0);
    add(format_args!(r#"<text x="{middle}" y="{base}" text-anchor="middle">step</text>"#));
    add(format_args!(r#"<text x="{left}" y="18">loss (nat)</text>"#));
    let mut curve = |points: &[(usize, f64)], color: &str, width: f64, opacity: f64, name: &str| {
        let points: Vec<String> = points
            .iter()
            .filter(|(_, loss)| loss.is_finite())
            .map(|(step, loss)| format!("{:.1},{:.1}", x(*step as f64), y(*loss)))
            .collect();
        if points.is_empty() {
            return;
        }
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            r#"<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}"><title>{name}</title></polyline>"#
        );
    };
    curve(train, "#4878cf", 1.0, 0.45, "training");
    curve(&smoothed(train), "#4878cf", 2.0, 1.0, "training, smoothed");
    curve(eval, "#d65f5f", 2.0, 1.0, "evaluation");
    for (i, (name, color, shown)) in
        [("training", "#4878cf", !train.is_empty()), ("evaluation", "#d65f5f", !eval.is_empty())].iter().enumerate()
    {
        if *shown {
            let at = WIDTH - right - 180.0 + 100.0 * i as f64;
            let _ = writeln!(svg, r#"<text x="{at}" y="18" fill="{color}">{name}</text>"#);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Round numbers between two others.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let raw = (to - from) / TICKS;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let first = (from / step).ceil();
    (0..).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= to).collect()
}

/// Means of the neighbourhood of each point.
fn smoothed(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let reach = points.len() / SMOOTH;
    let mean = |i: usize| {
        let near = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
        near.iter().map(|(_, loss)| loss).sum::<f64>() / near.len() as f64
    };
    points.iter().enumerate().map(|(i, (step, _))| (*step, mean(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_stay_within_the_picture() {
        let train: Vec<(usize, f64)> = (1..=100).map(|i| (i, 3.0 / i as f64)).collect();
        let svg = losses(&train, &[(50, 0.5), (100, f64::NAN)]);
        assert_eq!(svg.matches("<polyline").count(), 3);
        for pair in svg.split("points=\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap_or("").split(' ')) {
            let numbers: Vec<f64> = pair.split(',').filter_map(|n| n.parse().ok()).collect();
            assert!(numbers.len() == 2 && (0.0..=WIDTH).contains(&numbers[0]) && (0.0..=HEIGHT).contains(&numbers[1]));
        }
        assert!(svg.contains(">evaluation<") && svg.contains(">40<"), "{svg}");
        // One point, and none.
        assert!(losses(&[(1, 2.0)], &[]).contains("<polyline") && losses(&[], &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 12.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        let rounded: Vec<f64> = ticks(0.9, 2.1).iter().map(|tick| (tick * 1e6).round() / 1e6).collect();
        assert_eq!(rounded, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]);
    }
}
