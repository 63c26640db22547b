//! Writes a figure in three formats.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, WriteOptions, fontdb};
use svg2pdf::{ConversionOptions, PageOptions};

use super::Figure;
use super::draw::{FONT, svg};
use crate::{Error, Result};

/// Pixels of a PNG for one of the SVG's.
const PNG_SCALE: f32 = 1.5;

/// Writes `<path>.svg`, `<path>.png` and `<path>.pdf`, and makes the folder if it is missing. The SVG has its letters as shapes, the PDF
/// has the font in it: neither needs a font where it is looked at.
///
/// # Errors
/// A file can't be written.
pub fn write(figure: &Figure, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
    }
    let bad =
        |error: &dyn std::fmt::Display| Error::content(path, &format!("can't be drawn: {error}"));
    let tree = Tree::from_str(&svg(figure), &options()).map_err(|error| bad(&error))?;
    let shapes = WriteOptions {
        preserve_text: false,
        coordinates_precision: 1,
        transforms_precision: 4,
        ..WriteOptions::default()
    };
    save(path, "svg", tree.to_string(&shapes).as_bytes())?;
    save(path, "png", &png(&tree).ok_or_else(|| bad(&"the picture is too large"))?)?;
    let pdf = svg2pdf::to_pdf(&tree, ConversionOptions::default(), PageOptions::default());
    save(path, "pdf", &pdf.map_err(|error| bad(&error))?)
}

fn options() -> Options<'static> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    fonts.set_sans_serif_family(FONT);
    Options { font_family: FONT.to_owned(), fontdb: Arc::new(fonts), ..Options::default() }
}

fn png(tree: &Tree) -> Option<Vec<u8>> {
    let size = tree.size().to_int_size().scale_by(PNG_SCALE)?;
    let mut pixels = Pixmap::new(size.width(), size.height())?;
    resvg::render(tree, Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut pixels.as_mut());
    pixels.encode_png().ok()
}

fn save(path: &Path, ending: &str, bytes: &[u8]) -> Result<()> {
    // Not `with_extension`: a rate such as `0.55` is no ending.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ending}"));
    let path = Path::new(&name);
    fs::write(path, bytes).map_err(Error::file(path))
}
