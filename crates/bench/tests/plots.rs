//! Figures in all three formats.

use stallfree_bench::plot::{Axis, Chart, Figure, Look, Mark, Series, write};

fn figure(points: &[(f64, f64)]) -> Figure {
    let mut looks = vec![Look::Line, Look::Dashed, Look::Dotted, Look::Steps];
    if points.len() < 100 {
        looks.push(Look::Bars); // one a name, never thousands
    }
    let series = |(index, look)| {
        Series::line(&format!("look & {index}"), index, points.to_vec()).looking(look)
    };
    let chart = |x: Axis, y: Axis| Chart {
        x,
        y,
        series: looks.iter().copied().enumerate().map(series).collect(),
        rules: vec![(0.5, "half".to_owned())],
        marks: vec![Mark { at: (1.0, 1.0), text: "<here>".to_owned(), color: 9 }],
    };
    let names = Axis::names("Policy", ["a", "b", "c"].map(str::to_owned));
    Figure {
        title: "A title that is far too long for one line of a figure that fits a phone".to_owned(),
        subtitle: "x".to_owned(),
        charts: vec![
            chart(Axis::linear("Time (s)"), Axis::log("Tokens")),
            chart(names, Axis::linear("Share").from_to(0.0, 1.0)),
            chart(Axis { is_reversed: true, ..Axis::log("Scale") }, Axis::linear("Share")),
        ],
    }
}

#[test]
fn every_format_is_whole_and_needs_no_font() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, points: Vec<(f64, f64)>| {
        let path = folder.path().join("plots").join(name);
        write(&figure(&points), &path).unwrap();
        let read =
            |ending: &str| std::fs::read(path.with_file_name(format!("{name}.{ending}"))).unwrap();
        let svg = String::from_utf8(read("svg")).unwrap();
        assert!(
            svg.starts_with("<svg") && !svg.contains("<text") && !svg.contains("font-family"),
            "{name}"
        );
        assert!(svg.matches("<path").count() > 50, "{name}: letters are shapes");
        assert!(read("png").starts_with(b"\x89PNG"), "{name}");
        let pdf = read("pdf");
        assert!(pdf.starts_with(b"%PDF"), "{name}");
        assert!(pdf.windows(6).any(|word| word == b"DejaVu"), "{name}: the font is in it");
    };
    check("some", vec![(0.0, 0.2), (1.0, 1.0), (2.0, 0.4)]);
    check("rate-0.55", vec![(1.0, 1.0); 2]);
    check("none", Vec::new());
    check("odd", vec![(f64::NAN, 1.0), (1.0, f64::INFINITY), (-1.0, -5.0), (1e300, 1e-300)]);
    let many = (0..100_000).map(|index| (f64::from(index), f64::from(index % 977)));
    check("many", many.collect());
    let size = std::fs::metadata(folder.path().join("plots/many.svg")).unwrap().len();
    assert!(size < 3_000_000, "points that can't be seen are left out: {size} bytes");
}
