// Renders a Helm chart as Helm does, without Helm. Helm's language is Go's templates, sprig's functions, and a few of its
// own. The program writes one file per template into a directory:
//
//	render CHART DIRECTORY [VALUES...]
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type object = map[string]interface{}

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: render CHART DIRECTORY [VALUES...]"))
	}
	chart, directory := os.Args[1], os.Args[2]
	values := read(filepath.Join(chart, "values.yaml"))
	for _, file := range os.Args[3:] {
		merge(values, read(file))
	}
	about := object{}
	for name, value := range read(filepath.Join(chart, "Chart.yaml")) {
		about[strings.ToUpper(name[:1])+name[1:]] = value
	}
	data := object{
		"Chart":  about,
		"Values": values,
		"Release": object{
			"Name": "example", "Namespace": "default", "Service": "Helm", "Revision": 1, "IsInstall": true, "IsUpgrade": false,
		},
	}

	// For the chart's schema: Helm checks the merged values of all files against it.
	text, err := json.Marshal(values)
	fail(err)
	fail(os.WriteFile(filepath.Join(directory, "values.json"), text, 0o644))

	files, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	fail(err)
	all := template.New("chart").Option("missingkey=zero")
	all.Funcs(functions(all))
	for _, file := range files {
		text, err := os.ReadFile(file)
		fail(err)
		_, err = all.New(filepath.Base(file)).Parse(string(text))
		fail(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "_") {
			continue
		}
		var out bytes.Buffer
		fail(all.ExecuteTemplate(&out, name, data))
		text := strings.ReplaceAll(out.String(), "<no value>", "")
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(text) == "" {
			continue
		}
		fail(os.WriteFile(filepath.Join(directory, name), []byte(text), 0o644))
	}
}

// Helm's functions in addition to sprig's, as far as the chart uses them.
func functions(all *template.Template) template.FuncMap {
	functions := sprig.TxtFuncMap()
	// They would make a chart depend on the machine.
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	functions["toYaml"] = func(value interface{}) (string, error) {
		out, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(out), "\n"), err
	}
	return functions
}

// Reads YAML through JSON, as Helm does. So every number is a float, and a large one is written as such.
func read(file string) object {
	text, err := os.ReadFile(file)
	fail(err)
	var parsed object
	fail(yaml.Unmarshal(text, &parsed))
	text, err = json.Marshal(parsed)
	fail(err)
	values := object{}
	fail(json.Unmarshal(text, &values))
	return values
}

// Values of the later file win. null removes a value.
func merge(into, from object) {
	for name, value := range from {
		mine, isObject := into[name].(object)
		if inner, ok := value.(object); ok && isObject {
			merge(mine, inner)
		} else if value == nil {
			delete(into, name)
		} else {
			into[name] = value
		}
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}
