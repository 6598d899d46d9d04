package catalog

import "github.com/kamivm/kami/pkg/ami"

// What launches instances: templates, each with all of its versions, and groups.
const scaleSchema = `
	CREATE TABLE IF NOT EXISTS launch_templates (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL,
		created TEXT NOT NULL, doc TEXT NOT NULL, UNIQUE (owner, name)
	) STRICT;
	CREATE TABLE IF NOT EXISTS instance_groups (
		id TEXT PRIMARY KEY, owner TEXT NOT NULL, created TEXT NOT NULL, doc TEXT NOT NULL
	) STRICT;`

// PutTemplate writes a launch template. It returns ErrExists when another one of the
// owner has the name.
func (tx *Tx) PutTemplate(t ami.LaunchTemplate) error {
	return put(tx, "launch_templates", t, []string{"id", "owner", "name", "created"},
		string(t.LaunchTemplateID), t.OwnerID, t.LaunchTemplateName, stamp(t.CreateTime))
}

// Template reads a launch template by its name or id. It returns ErrNotFound.
func (tx *Tx) Template(owner, ref string) (ami.LaunchTemplate, error) {
	return one[ami.LaunchTemplate](tx, "launch_templates", "owner = ? AND (name = ? OR id = ?)", owner, ref, ref)
}

// Templates reads the launch templates of an owner, oldest first.
func (tx *Tx) Templates(owner string) ([]ami.LaunchTemplate, error) {
	return many[ami.LaunchTemplate](tx, "launch_templates", "owner = ?", owner)
}

// DeleteTemplate deletes a launch template with its versions.
func (tx *Tx) DeleteTemplate(id ami.LaunchTemplateID) error {
	return remove(tx, "launch_templates", "id = ?", string(id))
}

// PutGroup writes a group.
func (tx *Tx) PutGroup(g ami.Group) error {
	return put(tx, "instance_groups", g, []string{"id", "owner", "created"}, g.OwnerID+"/"+g.GroupName, g.OwnerID, stamp(g.CreatedTime))
}

// Group reads a group by its name. It returns ErrNotFound.
func (tx *Tx) Group(owner, name string) (ami.Group, error) {
	return one[ami.Group](tx, "instance_groups", "id = ?", owner+"/"+name)
}

// Groups reads the groups of an owner, oldest first.
func (tx *Tx) Groups(owner string) ([]ami.Group, error) {
	return many[ami.Group](tx, "instance_groups", "owner = ?", owner)
}

// DeleteGroup deletes a group's record.
func (tx *Tx) DeleteGroup(owner, name string) error {
	return remove(tx, "instance_groups", "id = ?", owner+"/"+name)
}
