//! Writes small parquet files.
#![allow(dead_code, reason = "each test file uses a part")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Columns of texts, each of as many rows.
pub fn texts(path: &Path, compression: Compression, columns: &[(&str, &[Option<&str>])]) {
    let fields: String =
        columns.iter().map(|(name, _)| format!("optional binary {name} (STRING); ")).collect();
    write(path, compression, &fields, |writer| {
        for (_, rows) in columns {
            let values: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
            let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
            column(writer, &values, Some(&levels), None);
        }
    });
}

/// A column of conversations: lists of role and content.
pub fn conversations(path: &Path, name: &str, rows: &[&[(&str, &str)]]) {
    let fields = format!(
        "required group {name} (LIST) {{ repeated group list {{ required group element {{ \
         required binary role (STRING); required binary content (STRING); }} }} }}"
    );
    write(path, Compression::SNAPPY, &fields, |writer| {
        for part in [0, 1] {
            let messages = rows.iter().flat_map(|row| row.iter());
            let values: Vec<ByteArray> =
                messages.map(|(role, content)| ByteArray::from([*role, *content][part])).collect();
            let levels: Vec<i16> = vec![1; values.len()];
            let repeated: Vec<i16> =
                rows.iter().flat_map(|row| (0..row.len()).map(|i| i16::from(i > 0))).collect();
            column(writer, &values, Some(&levels), Some(&repeated));
        }
    });
}

type Groups<'a> = parquet::file::writer::SerializedRowGroupWriter<'a, File>;

fn write(path: &Path, compression: Compression, fields: &str, fill: impl FnOnce(&mut Groups<'_>)) {
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {fields} }}")).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    fill(&mut group);
    group.close().unwrap();
    writer.close().unwrap();
}

fn column(group: &mut Groups<'_>, values: &[ByteArray], levels: Option<&[i16]>, repeated: Option<&[i16]>) {
    let mut column = group.next_column().unwrap().expect("a column");
    column.typed::<ByteArrayType>().write_batch(values, levels, repeated).unwrap();
    column.close().unwrap();
}
