package config

// Template is the commented hotdeploy.toml for a service.
func Template(service string) []byte { return nil }

// TemplateFor is Template filled in for what is found in dir.
func TemplateFor(service, dir string) ([]byte, error) { return nil, nil }

// ServiceName guesses a service's name from its project's directory.
func ServiceName(dir string) string { return "" }
