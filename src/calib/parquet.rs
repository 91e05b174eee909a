//! A column of a parquet file, as data sets on the hub are distributed: texts, or conversations.

use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::CalibError;
use super::fields::{Fields, Piece, Wrong};
use super::options::FIELDS;
use crate::model::{MESSAGE, clip, quietly};

/// Calls `take` with every document of the column, in the order of the file, and with its number. Rows without a value are left out.
pub(super) fn read(
    path: &Path,
    bytes: Vec<u8>,
    fields: &mut Fields<'_>,
    mut take: impl FnMut(usize, Piece) -> Result<(), CalibError>,
) -> Result<(), CalibError> {
    let bad = |problem: &dyn std::fmt::Display| {
        let problem = clip(&problem.to_string().replace('\n', " "), MESSAGE);
        CalibError::Parquet { path: path.into(), problem }
    };
    let broken = || bad(&"its parts contradict each other");
    // The library panics over some damaged files.
    let opened = quietly(|| SerializedFileReader::new(bytes::Bytes::from(bytes))).ok_or_else(broken)?;
    let reader = opened.map_err(|e| bad(&e))?;
    let schema = reader.metadata().file_metadata().schema();
    let (name, column) = chosen(path, schema, fields.options.column.as_deref())?;
    let group = Type::group_type_builder("schema").with_fields(vec![column]).build().map_err(|e| bad(&e))?;
    let rows = quietly(|| RowIter::from_file(Some(group), &reader)).ok_or_else(broken)?;
    let mut rows = rows.map_err(|e| bad(&e))?;
    for number in 1.. {
        let Some(row) = quietly(|| rows.next()).ok_or_else(broken)? else { break };
        let row = row.map_err(|e| bad(&e))?;
        let Some((_, field)) = row.get_column_iter().next() else { continue };
        let value = value_of(field, 0);
        if value.is_null() {
            continue;
        }
        let piece = match fields.content(&name, &value) {
            Ok(piece) => piece,
            Err(Wrong::Document(problem)) => {
                return Err(CalibError::Element { path: path.into(), what: "row", number, problem });
            }
            Err(Wrong::Other(error)) => return Err(error),
        };
        take(number, piece)?;
    }
    Ok(())
}

/// The column that holds the text.
fn chosen(
    path: &Path,
    schema: &Type,
    asked: Option<&str>,
) -> Result<(String, parquet::schema::types::TypePtr), CalibError> {
    let all = schema.get_fields();
    let found = match asked {
        Some(name) => all.iter().find(|column| column.name() == name),
        None => {
            let usual = FIELDS.iter().find_map(|name| all.iter().find(|column| column.name() == *name));
            let mut texts = all.iter().filter(|column| is_text(column));
            let only = texts.next().filter(|_| texts.next().is_none());
            usual.or(only)
        }
    };
    let names: Vec<String> = all.iter().take(20).map(|column| clip(column.name(), 60)).collect();
    let there = names.join(", ");
    match (found, asked) {
        (Some(column), _) => Ok((column.name().into(), column.clone())),
        (None, Some(name)) => {
            Err(CalibError::Column { path: path.into(), problem: format!("has no column {name}"), there })
        }
        (None, None) => Err(CalibError::Column {
            path: path.into(),
            problem: "has no column `text`, `content` or `messages`".into(),
            there,
        }),
    }
}

fn is_text(column: &Type) -> bool {
    let text = matches!(column.get_basic_info().logical_type_ref(), Some(LogicalType::String))
        || column.get_basic_info().converted_type() == ConvertedType::UTF8;
    column.is_primitive() && column.get_physical_type() == Physical::BYTE_ARRAY && text
}

/// A value as JSON; numbers and dates, which are no texts, as null. Deeper than messages go, nothing is looked at.
fn value_of(field: &Field, depth: usize) -> Value {
    if depth > 8 {
        return Value::Null;
    }
    match field {
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Bool(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::Group(row) => object(row, depth),
        Field::ListInternal(list) => list.elements().iter().map(|field| value_of(field, depth + 1)).collect(),
        _ => Value::Null,
    }
}

fn object(row: &Row, depth: usize) -> Value {
    let pairs = row.get_column_iter().map(|(name, field)| (name.clone(), value_of(field, depth + 1)));
    // A struct column has all the keys that any row has; those of others are null here.
    Value::Object(pairs.filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
}
